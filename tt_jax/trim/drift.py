"""How far a new chunk strays from what came before: summaries, token drift, severity, statistics.

Pure array functions in at least float32. A token is a patch of latent values on the transformer's
own grid, so that a token index is a K/V index (TokenTrim, section 3).

Axes: B batch, F frames, P tokens of a frame, D token width, S context slots.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.nn.layers import patchify, wide


def frame_tokens(latents: Float[Array, "b f h w c"], patch: int) -> Float[Array, "b f p d"]:
    """The latent tokens of every frame."""
    return patchify(wide(latents), patch)


def summary(tokens: Float[Array, "b f p d"]) -> Float[Array, "b p d"]:
    """Latent summary of a chunk: the mean of its frames, token by token (equation 1)."""
    return jnp.mean(tokens, axis=1)


def token_drift(
    now: Float[Array, "*#b p d"], before: Float[Array, "*#b p d"]
) -> Float[Array, "... p"]:
    """Euclidean distance between two summaries, token by token (equation 2)."""
    return jnp.sqrt(jnp.sum((now - before) ** 2, axis=-1))


def neighbour_drift(
    now: Float[Array, "b p d"], before: Float[Array, "b p d"], grid: tuple[int, int]
) -> Float[Array, "b p"]:
    """Distance of every token to the nearest of the 3x3 around its place in the summary before.

    grid: the tokens' rows and columns. What moves by up to one token counts as stable.
    """
    rows, columns = grid
    # At the border, repeating it adds no candidate that isn't in the 3x3 already.
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = jnp.pad(before.reshape(before.shape[0], rows, columns, -1), around, mode="edge")
    shifted = [
        padded[:, y : y + rows, x : x + columns].reshape(before.shape)
        for y in range(3)
        for x in range(3)
    ]
    return functools.reduce(jnp.minimum, [token_drift(now, other) for other in shifted])


def novelty(
    tokens: Float[Array, "b f p d"], context: Float[Array, "b s p d"], filled: Bool[Array, " s"]
) -> Float[Array, "b p"]:
    """Distance to the nearest token at any place of any filled slot, mean over the new frames."""
    batch, frames, places, width = tokens.shape
    new = tokens.reshape(batch, frames * places, width)

    def look(best: tuple[Array, Array], slot: tuple[Array, Array]) -> tuple[tuple, None]:
        """Slot by slot, so that F P x P products are the most that is held at once."""
        nearest, score = best
        old, there = slot
        products = jnp.einsum("bqd,bpd->bqp", new, old, precision=jax.lax.Precision.HIGHEST)
        # The squared distance, but for the new token's own square.
        scores = jnp.sum(old**2, axis=-1)[:, None] - 2 * products
        index = jnp.argmin(scores, axis=-1)[..., None]
        candidate = jnp.take_along_axis(old, index, axis=1)
        value = jnp.where(there, jnp.take_along_axis(scores, index, axis=-1), jnp.inf)
        closer = value < score
        return (jnp.where(closer, candidate, nearest), jnp.where(closer, value, score)), None

    start = (jnp.zeros_like(new), jnp.full((*new.shape[:2], 1), jnp.inf, new.dtype))
    (nearest, _), _ = jax.lax.scan(look, start, (jnp.moveaxis(context, 1, 0), filled))
    # Again as a difference: the expanded square has lost the digits of what is close.
    return jnp.mean(token_drift(new, nearest).reshape(batch, frames, places), axis=1)


def top(drift: Float[Array, "b p"], count: int) -> Bool[Array, "b p"]:
    """The `count` tokens that drift most; of equal ones, those of lower index."""
    _, index = jax.lax.top_k(drift, count)
    return jnp.any(jax.nn.one_hot(index, drift.shape[-1], dtype=bool), axis=-2)


def severity(drift: Float[Array, "b p"], count: int) -> Float[Array, " b"]:
    """Mean drift of the `count` most drifting tokens (equation 4)."""
    return jnp.mean(jax.lax.top_k(drift, count)[0], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Running mean and spread of the severities accepted so far, per sample (Welford's update)."""

    count: Int[Array, " b"]
    mean: Float[Array, " b"]
    # Sum of squared distances from the mean.
    squares: Float[Array, " b"]

    @classmethod
    def start(cls, batch: int) -> "Statistics":
        """Nothing seen yet."""
        return cls(jnp.zeros((batch,), jnp.int32), jnp.zeros((batch,)), jnp.zeros((batch,)))

    @property
    def deviation(self) -> Float[Array, " b"]:
        """Population standard deviation."""
        return jnp.sqrt(self.squares / self._at_least_one(self.count))

    def _at_least_one(self, count: Int[Array, " b"]) -> Float[Array, " b"]:
        return jnp.maximum(count, 1).astype(self.mean.dtype)

    def threshold(self, lam: float | Float[Array, ""], warmup: int) -> Float[Array, " b"]:
        """mean + lam deviation (equation 5), infinite until `warmup` severities were seen."""
        return jnp.where(self.count >= warmup, self.mean + lam * self.deviation, jnp.inf)

    def update(self, value: Float[Array, " b"], measured: Bool[Array, ""]) -> "Statistics":
        """With one more accepted severity, unless nothing was measured."""
        count = self.count + measured.astype(jnp.int32)
        step = jnp.where(measured, value - self.mean, 0.0)
        mean = self.mean + step / self._at_least_one(count)
        squares = self.squares + step * jnp.where(measured, value - mean, 0.0)
        return Statistics(count, mean, squares)
