"""Attention behind one door, and the rotary positions of its queries and keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tt_jax.layers import wide, wide_dtype

THETA = 10000.0
FRAME_TABLE = 4096  # a frame index is split into a remainder and a multiple of this
LOGIT_BYTES = 256 * 2**20  # at most this much for one block of attention logits


def attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None = None,
) -> Float[Array, "b t n h"]:
    """Softmax attention, scale 1/sqrt(h), over the keys that `mask` allows (all without one).

    Logits and softmax are at least float32. Queries are taken in blocks, so that the logits never
    need more than 256 MB. A query that may see no key at all returns the mean of all values.
    """
    b, t, n, _ = q.shape
    s = k.shape[1]
    rows = max(1, LOGIT_BYTES // (4 * b * n * s))
    if t <= rows:
        return _attend(q, k, v, mask)
    block = next(size for size in range(min(rows, t), 0, -1) if t % size == 0)

    def attend(index: Int[Array, ""]) -> Float[Array, "b block n h"]:
        part = jax.lax.dynamic_slice_in_dim(q, index * block, block, axis=1)
        if mask is None or mask.shape[1] == 1:
            return _attend(part, k, v, mask)
        return _attend(part, k, v, jax.lax.dynamic_slice_in_dim(mask, index * block, block, 1))

    # Recomputed in a backward pass: kept, the weights would need all the memory at once.
    blocks = jax.lax.map(jax.checkpoint(attend), jnp.arange(t // block))
    return jnp.moveaxis(blocks, 0, 1).reshape(q.shape)


def _attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None,
) -> Float[Array, "b t n h"]:
    kind = wide_dtype(q.dtype)
    logits = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=kind) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, jnp.finfo(kind).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)


# --- rotary positions ---------------------------------------------------------------------------


@functools.cache
def _frequencies(head_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angular frequencies of the channel pairs that carry time, height and width; float64."""
    side = 2 * (head_dim // 6)
    widths = (head_dim - 2 * side, side, side)
    time, height, width = (THETA ** (-np.arange(0, d, 2, dtype=np.float64) / d) for d in widths)
    return time, height, width


def rotation(
    frames: Int[Array, " f"], height: int, width: int, head_dim: int
) -> tuple[Float[Array, "t pairs"], Float[Array, "t pairs"]]:
    """Cosines and sines of the 3D rotary positions of `f x height x width` tokens, in that order.

    `frames` are absolute frame indices, of any size: the angle is put together from two tables
    made in float64 on the host (`frame % 4096`, `frame // 4096`), right to 8e-8 where a float32
    product of position and frequency is off by 2e-3 at frame 100,000.
    """
    time, high, wide_ = _frequencies(head_dim)
    steps = np.arange(FRAME_TABLE, dtype=np.float64)[:, None]
    low_angle, high_angle = steps * time, steps * FRAME_TABLE * time
    low, coarse = frames % FRAME_TABLE, frames // FRAME_TABLE
    cos_a, sin_a = jnp.asarray(np.cos(low_angle))[low], jnp.asarray(np.sin(low_angle))[low]
    cos_b, sin_b = jnp.asarray(np.cos(high_angle))[coarse], jnp.asarray(np.sin(high_angle))[coarse]
    cos_t, sin_t = cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b

    rows, columns = np.arange(height)[:, None] * high, np.arange(width)[:, None] * wide_
    grid = (frames.shape[0], height, width)

    def over_grid(t, h, w):
        parts = t[:, None, None], jnp.asarray(h)[:, None], jnp.asarray(w)
        parts = [jnp.broadcast_to(part, (*grid, part.shape[-1])) for part in parts]
        return jnp.concatenate(parts, axis=-1).reshape(-1, head_dim // 2)

    return (
        over_grid(cos_t, np.cos(rows), np.cos(columns)),
        over_grid(sin_t, np.sin(rows), np.sin(columns)),
    )


def rotate(
    x: Float[Array, "*b t n h"],
    by: tuple[Float[Array, "t pairs"], Float[Array, "t pairs"]],
) -> Float[Array, "*b t n h"]:
    """Turns adjacent channel pairs (2i, 2i + 1) by `rotation`'s angles; in at least float32."""
    cos, sin = (part[:, None] for part in by)
    pairs = wide(x).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
