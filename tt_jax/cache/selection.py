"""How policies choose tokens and frames: by queries, by likeness, apart from one another.

Scores are in float32. What may not be attended (`there`, `able`) has no influence on any.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def best_tokens(
    query: Float[Array, "b n h"],
    keys: Float[Array, "b t n h"],
    able: Bool[Array, "b t"],
    count: int,
) -> tuple[Int[Array, "b c"], Bool[Array, "b c"], Bool[Array, "b t"]]:
    """The tokens whose keys score highest: sum over heads of q k / (sqrt(h) n).

    Args:
        query: of each head, a sum over the queries.
        keys: of all tokens, rotated as the queries are.
        able: which tokens may be chosen.
        count: how many are.

    Returns:
        Their indices, best first; which of these were able; and which of all tokens are among them.
    """
    heads, width = query.shape[1:]
    score = jnp.einsum(
        "bnh,bsnh->bs", query, keys.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    ) / (width**0.5 * heads)
    best, index = jax.lax.top_k(jnp.where(able, score, -jnp.inf), count)
    kept = best > -jnp.inf
    rows = jnp.arange(len(able), dtype=jnp.int32)[:, None]
    return index, kept, jnp.zeros(able.shape, bool).at[rows, index].set(kept)


def mean_of(x: Float[Array, "*b t n h"], there: Bool[Array, "*b t"]) -> Float[Array, "*b n h"]:
    """Mean over the tokens that are there, in float32; 0 if none is.

    Args:
        x: values of all tokens.
        there: which of them count.
    """
    weight = there[..., None, None].astype(jnp.float32)
    total = jnp.maximum(jnp.sum(weight, axis=-3), 1)
    return jnp.sum(weight * x.astype(jnp.float32), axis=-3) / total


def moments(
    x: Float[Array, "*b t n h"], there: Bool[Array, "*b t"]
) -> tuple[Float[Array, "*b n h"], Float[Array, "*b n h"]]:
    """Mean and standard deviation over the tokens that are there, in float32.

    Args:
        x: values of all tokens.
        there: which of them count.
    """
    mean = mean_of(x, there)
    apart = x.astype(jnp.float32) - mean[..., None, :, :]
    return mean, jnp.sqrt(mean_of(apart**2, there))


def prototype(keys: Float[Array, "b t n h"], there: Bool[Array, "b t"]) -> Float[Array, "b h"]:
    """The mean key over heads and the tokens that are there, of length 1 (Relax Forcing).

    Args:
        keys: of all tokens.
        there: which of them count.
    """
    mean = jnp.mean(mean_of(keys, there), axis=1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def frame_logits(
    query: Float[Array, "b n h"], keys: Float[Array, "b t n h"], there: Bool[Array, "b s p"]
) -> Float[Array, "b s"]:
    """Of each frame, the mean over heads of q k / sqrt(h), k its mean key (TetherCache).

    Args:
        query: mean over the queries.
        keys: of S frames of P tokens each.
        there: which of the tokens are in their frame's mean.
    """
    mean = mean_of(keys.reshape(*there.shape, *keys.shape[2:]), there)
    product = jnp.einsum("bnh,bsnh->bsn", query, mean, precision=jax.lax.Precision.HIGHEST)
    return jnp.mean(product, axis=2) / keys.shape[-1] ** 0.5


def apart(
    logits: Float[Array, "l b c"],
    time: Int[Array, "l b c"],
    there: Bool[Array, "l b c"],
    weight: float,
) -> Float[Array, "l b c"]:
    """Scores of frames: how much is attended to each, and how far it is from others that are.

    A frame's share a is a softmax over those that are there; it adds `weight` times its diversity,
    1 - max over the others of exp(-|t_i - t_j| / s) a_j and at least 0, s half the span of their
    times and at least 1 (TetherCache, arXiv 2606.13035).

    Args:
        logits: of the frames, in each layer.
        time: their numbers in the video.
        there: which of them there are.
        weight: of diversity.

    Returns:
        The scores; -inf of a frame that isn't there.
    """
    share = jax.nn.softmax(jnp.where(there, logits, -1e30), axis=-1)
    moment = time.astype(jnp.float32)
    last = jnp.max(jnp.where(there, moment, -jnp.inf), axis=-1, keepdims=True)
    first = jnp.min(jnp.where(there, moment, jnp.inf), axis=-1, keepdims=True)
    some = jnp.any(there, axis=-1, keepdims=True)
    span = jnp.where(some, jnp.maximum(1, 0.5 * (last - first + 1)), 1.0)[..., None]
    near = jnp.exp(-jnp.abs(moment[..., :, None] - moment[..., None, :]) / span)
    others = there[..., None, :] & ~jnp.eye(time.shape[-1], dtype=bool)[None, None]
    most = jnp.max(jnp.where(others, near * share[..., None, :], 0), axis=-1)
    score = share + weight * jnp.maximum(1 - most, 0)
    return jnp.where(there, score, -jnp.inf)


def admitted(
    score: Float[Array, "l b c"], able: Bool[Array, "l b c"], count: int
) -> tuple[Bool[Array, "l b f"], Int[Array, "l b f"]]:
    """Which of the candidates after the first `count`, the members, are among the best `count`.

    Args:
        score: of members and newcomers.
        able: which of them may be members at all.
        count: members there can be.

    Returns:
        Which newcomers enter, and into which members' places: those that aren't among the best.
    """
    best = jax.lax.top_k(score, count)[1]
    stays = jnp.any(jax.nn.one_hot(best, score.shape[2], dtype=bool), axis=2) & able
    free = jnp.argsort(stays[:, :, :count], axis=2, stable=True).astype(jnp.int32)
    enters = stays[:, :, count:]
    before = jnp.cumsum(enters, axis=2, dtype=jnp.int32) - enters.astype(jnp.int32)
    return enters, jnp.take_along_axis(free, before, axis=2)


def drawn(
    x: Float[Array, "b t n h"],
    there: Bool[Array, "b t"],
    towards: tuple[Float[Array, "b n h"], Float[Array, "b n h"]],
    share: float,
) -> Float[Array, "b t n h"]:
    """Keys or values of which a `share` has the mean and deviation `towards` (TetherCache).

    Args:
        x: of a frame's tokens, in float32.
        there: which of them make its own mean and deviation.
        towards: `moments` of others, for each head and channel.
        share: of what is moved there.
    """
    mean, deviation = (part[:, None] for part in moments(x, there))
    new_mean, new_deviation = (part[:, None] for part in towards)
    moved = new_deviation * (x - mean) / (deviation + 1e-6) + new_mean
    return (1 - share) * x + share * moved
