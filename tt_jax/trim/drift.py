"""How far a new chunk strays from what came before: summaries, token drift, severity, statistics.

Pure array functions in at least float32. A token is a patch of latent values on the transformer's
own grid, so that a token index is a K/V index (TokenTrim, section 3).

Axes: B batch, F frames, P tokens of a frame, D token width, S context slots.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Num

from tt_jax.contracts import checked
from tt_jax.nn.layers import patchify, wide

RECENT = 64  # severities that a median goes over: 48 seconds of chunks of three latent frames


def frame_tokens(latents: Float[Array, "b f h w c"], patch: int) -> Float[Array, "b f p d"]:
    """The latent tokens of every frame.

    Args:
        latents: of F frames; height and width are multiples of `patch`.
        patch: side of a token in latents.

    Returns:
        A token's D = patch x patch x c latent values, row by row; at least float32.
    """
    return patchify(wide(latents), patch)


def summary(tokens: Float[Array, "b f p d"]) -> Float[Array, "b p d"]:
    """Latent summary of a chunk: the mean of its frames, token by token (equation 1).

    Args:
        tokens: of the chunk's F frames.

    Returns:
        The mean, in the tokens' dtype.
    """
    return jnp.mean(tokens, axis=1)


def token_drift(
    now: Float[Array, "*#b p d"], before: Float[Array, "*#b p d"]
) -> Float[Array, "*b p"]:
    """Euclidean distance between two summaries, token by token (equation 2).

    Args:
        now: tokens of one summary, or of several that broadcast against `before`.
        before: the tokens that they are compared with.

    Returns:
        Distances in latent values.
    """
    return jnp.sqrt(jnp.sum((now - before) ** 2, axis=-1))


def neighbour_drift(
    now: Float[Array, "b p d"], before: Float[Array, "b p d"], grid: tuple[int, int]
) -> Float[Array, "b p"]:
    """Distance of every token to the nearest of the 3x3 around its place in the summary before.

    What moves by up to one token counts as stable.

    Args:
        now: summary of the new chunk.
        before: summary of the one before it.
        grid: the tokens' rows and columns, P in all.

    Returns:
        Distances in latent values.
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
    tokens: Float[Array, "b f p d"],
    context: Float[Array, "b s p d"],
    valid: Bool[Array, "b s p"],
) -> Float[Array, "b p"]:
    """Distance to the nearest valid token of the context, wherever it lies; mean over the frames.

    Args:
        tokens: of the new frames.
        context: tokens of the cached frames.
        valid: those that may be compared with: written and not pruned.

    Returns:
        Distances in latent values; to the origin where a sample has no valid token at all.
    """
    return jnp.mean(_to_nearest(tokens, context, valid), axis=1)


def absence(
    tokens: Float[Array, "b f p d"],
    context: Float[Array, "b s p d"],
    valid: Bool[Array, "b s p"],
) -> Float[Array, "b p"]:
    """Novelty's reverse: how far what the context had is from anything in the new frames.

    Args:
        tokens: of the new frames.
        context: tokens of the cached frames.
        valid: those that the new frames are asked for: written and not pruned.

    Returns:
        For each position the mean distance of its valid entries to the nearest token of the new
        frames, wherever it lies, in latent values; 0 where it has none.
    """
    distance = _to_nearest(context, tokens, jnp.ones(tokens.shape[:3], bool))
    total = jnp.sum(jnp.where(valid, distance, 0), axis=1)
    return total / jnp.maximum(jnp.sum(valid, axis=1), 1).astype(total.dtype)


def _to_nearest(tokens, context, valid):
    """Distance of every token of the frames to the nearest valid one of the context's."""
    batch, frames, places, width = tokens.shape
    new = tokens.reshape(batch, frames * places, width)

    # Farther than anything; not infinity, for those who look for it (`jax_debug_infs`).
    nowhere = jnp.asarray(jnp.finfo(tokens.dtype).max, tokens.dtype)

    def look(best: tuple[Array, Array], slot: tuple[Array, Array]) -> tuple[tuple, None]:
        """Slot by slot, so that F P x P products are the most that is held at once."""
        nearest, score = best
        old, there = slot
        products = jnp.einsum("bqd,bpd->bqp", new, old, precision=jax.lax.Precision.HIGHEST)
        # The squared distance, but for the new token's own square.
        scores = jnp.sum(old**2, axis=-1)[:, None] - 2 * products
        scores = jnp.where(there[:, None], scores, nowhere)
        index = jnp.argmin(scores, axis=-1)[..., None]
        candidate = jnp.take_along_axis(old, index, axis=1)
        value = jnp.take_along_axis(scores, index, axis=-1)
        closer = value < score
        return (jnp.where(closer, candidate, nearest), jnp.where(closer, value, score)), None

    start = (jnp.zeros_like(new), jnp.full_like(new[..., :1], nowhere))
    slots = (jnp.moveaxis(context, 1, 0), jnp.moveaxis(valid, 1, 0))
    (nearest, _), _ = jax.lax.scan(look, start, slots)
    # Again as a difference: the expanded square has lost the digits of what is close.
    return token_drift(new, nearest).reshape(batch, frames, places)


def top(drift: Float[Array, "b p"], count: int) -> Bool[Array, "b p"]:
    """The `count` tokens that drift most; of equal ones, those of lower index.

    Args:
        drift: of the P tokens.
        count: size of the unstable set, 1 to P.

    Returns:
        True for exactly `count` tokens of each sample.
    """
    _, index = jax.lax.top_k(drift, count)
    return jnp.any(jax.nn.one_hot(index, drift.shape[-1], dtype=bool), axis=-2)


def severity(drift: Float[Array, "b p"], count: int) -> Float[Array, " b"]:
    """Mean drift of the `count` most drifting tokens (equation 4).

    Args:
        drift: of the P tokens.
        count: size of the unstable set, 1 to P.

    Returns:
        The severity of each sample, in latent values.
    """
    return jnp.mean(jax.lax.top_k(drift, count)[0], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and spread of the severities accepted so far, per sample (Welford's update).

    Attributes:
        count: number of severities, int32.
        mean: their mean, 0 while there is none.
        squares: sum of their squared distances from the mean.
        recent: the last `RECENT` of them, a ring, for those who want medians.
    """

    count: Int[Array, " b"]
    mean: Float[Array, " b"]
    squares: Float[Array, " b"]
    recent: Float[Array, "b recent"]

    @classmethod
    def start(cls, batch: int, dtype: DTypeLike = jnp.float32) -> "Statistics":
        """Nothing seen yet.

        Args:
            batch: number of samples.
            dtype: of the severities to come.

        Returns:
            Statistics of no severity.
        """
        nothing = jnp.zeros((batch,), dtype)
        recent = jnp.zeros((batch, RECENT), dtype)
        return cls(jnp.zeros((batch,), jnp.int32), nothing, nothing, recent)

    @property
    def deviation(self) -> Float[Array, " b"]:
        """Population standard deviation."""
        return jnp.sqrt(self.squares / self._at_least_one(self.count))

    @property
    def robust(self) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
        """Median of the recent severities, and their median absolute deviation from it, scaled to
        a normal distribution's standard deviation; 0 while there is none."""
        middle = self._median(self.recent)
        return middle, 1.4826 * self._median(jnp.abs(self.recent - middle[:, None]))

    def _median(self, values: Float[Array, "b recent"]) -> Float[Array, " b"]:
        """Over the places of the ring that are filled."""
        held = jnp.clip(self.count, 1, RECENT)[:, None]
        nowhere = jnp.asarray(jnp.finfo(values.dtype).max, values.dtype)
        there = jnp.arange(RECENT, dtype=jnp.int32)[None] < held
        ordered = jnp.sort(jnp.where(there, values, nowhere), axis=1)
        low, high = (
            jnp.take_along_axis(ordered, index, axis=1)[:, 0]
            for index in ((held - 1) // 2, held // 2)
        )
        return (low + high) / 2

    def _at_least_one(self, count: Int[Array, " b"]) -> Float[Array, " b"]:
        return jnp.maximum(count, 1).astype(self.mean.dtype)

    def threshold(
        self, lam: float | Num[Array, ""], warmup: int, robust: bool = False
    ) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
        """What the next severity is compared with: mean + lam deviation (equation 5).

        Args:
            lam: how many deviations; infinite: there is no threshold.
            warmup: severities to see before there is one.
            robust: median and scaled median absolute deviation of the recent ones instead.

        Returns:
            The threshold, 0 where there is none, and whether there is one.
        """
        most = jnp.finfo(self.mean.dtype).max
        lam = jnp.asarray(lam).astype(self.mean.dtype)
        limited = lam < jnp.inf
        middle, spread = self.robust if robust else (self.mean, self.deviation)
        value = middle + jnp.where(limited, jnp.maximum(lam, -most), 0) * spread
        exists = (self.count >= warmup) & limited
        return jnp.where(exists, jnp.clip(value, -most, most), 0), exists

    def update(self, value: Float[Array, " b"], measured: Bool[Array, ""]) -> "Statistics":
        """With one more accepted severity, unless nothing was measured.

        Args:
            value: the severity, anything where it wasn't measured.
            measured: whether it was.

        Returns:
            New statistics; these stay as they are.
        """
        count = self.count + measured.astype(jnp.int32)
        step = jnp.where(measured, value - self.mean, 0.0)
        mean = self.mean + step / self._at_least_one(count)
        squares = self.squares + step * jnp.where(measured, value - mean, 0.0)
        place = jnp.arange(RECENT, dtype=jnp.int32)[None] == (self.count % RECENT)[:, None]
        recent = jnp.where(place & measured, value[:, None], self.recent)
        return checked(Statistics(count, mean, squares, recent))
