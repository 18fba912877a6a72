"""Rotary positions in three dimensions (RoFormer, arXiv 2104.09864, as Wan2.1 arranges them): time,
height, width."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tt_jax.nn.layers import to_rank, wide, wide_dtype

THETA = 10000.0
FRAME_TABLE = 4096  # a frame index is split into a remainder and a multiple of this


@functools.cache
def _frequencies(head_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angular frequencies of the channel pairs that carry time, height and width; float64."""
    side = 2 * (head_dim // 6)
    widths = (head_dim - 2 * side, side, side)
    time, height, width = (THETA ** (-np.arange(0, d, 2, dtype=np.float64) / d) for d in widths)
    return time, height, width


def rotation(
    frames: Int[Array, " f"],
    height: int,
    width: int,
    head_dim: int,
    bases: tuple[float, ...] | None = None,
) -> tuple[Float[Array, "t *n pairs"], Float[Array, "t *n pairs"]]:
    """Cosines and sines of the 3D rotary positions of `f x height x width` tokens, in that order.

    The angle is put together from two tables made in float64 on the host (`frame % 4096`, `frame //
    4096`), right to 8e-8 where a float32 product of position and frequency is off by 2e-3 at frame
    100,000.

    Args:
        frames: absolute frame indices, of any size.
        height: rows of tokens of a frame.
        width: columns of tokens of a frame.
        head_dim: width of an attention head.
        bases: a base of its own in time for every head, in the place of 10000.

    Returns:
        Cosines and sines, `[t, head_dim / 2]`; with `bases` `[t, heads, head_dim / 2]`.
    """
    cos_t, sin_t = _in_time(frames, head_dim, bases)
    _, high, wide_ = _frequencies(head_dim)
    heads = () if bases is None else (len(bases),)
    # Axes of height and width, each with one for the other and for the heads.
    rows = (np.arange(height)[:, None] * high).reshape(height, 1, *(1 for _ in heads), -1)
    columns = (np.arange(width)[:, None] * wide_).reshape(width, *(1 for _ in heads), -1)
    grid = (frames.shape[0], height, width, *heads)

    def over_grid(t, h, w):
        parts = t[:, None, None], jnp.asarray(h), jnp.asarray(w)
        parts = [jnp.broadcast_to(part, (*grid, part.shape[-1])) for part in parts]
        return jnp.concatenate(parts, axis=-1).reshape(-1, *heads, head_dim // 2)

    return (
        over_grid(cos_t, np.cos(rows), np.cos(columns)),
        over_grid(sin_t, np.sin(rows), np.sin(columns)),
    )


def rotation_at(
    frames: Int[Array, "*b t"],
    places: Int[Array, "*b t"],
    height: int,
    width: int,
    head_dim: int,
    bases: tuple[float, ...] | None = None,
) -> tuple[Float[Array, "*b t n pairs"], Float[Array, "*b t n pairs"]]:
    """`rotation` of tokens one by one.

    Args:
        frames: each token's frame.
        places: each token's place in a frame's grid, row by row.
        height: rows of tokens of a frame.
        width: columns of tokens of a frame.
        head_dim: width of an attention head.
        bases: as in `rotation`.

    Returns:
        Cosines and sines with an axis of heads, of size one without `bases`.
    """
    turns = _in_time(frames, head_dim, bases)
    still = rotation(jnp.zeros((1,), jnp.int32), height, width, head_dim)

    def join(time: Array, space: Array) -> Array:
        time = time[..., None, :] if bases is None else time
        space = space[places, time.shape[-1] :][..., None, :]
        space = jnp.broadcast_to(space, (*time.shape[:-1], space.shape[-1]))
        return jnp.concatenate([time, space], axis=-1)

    cos, sin = (join(time, space) for time, space in zip(turns, still, strict=True))
    return cos, sin


_Turn = Float[Array, "*b f pairs"] | Float[Array, "*b f n pairs"]


def _in_time(
    frames: Int[Array, "*b f"], head_dim: int, bases: tuple[float, ...] | None
) -> tuple[_Turn, _Turn]:
    """Cosines and sines of the channel pairs that carry time; with `bases` an axis of heads."""
    time = _frequencies(head_dim)[0]
    steps = np.arange(FRAME_TABLE, dtype=np.float64)[:, None]
    if bases is not None:
        time = np.array([time ** (np.log(base) / np.log(THETA)) for base in bases])
        steps = steps[..., None]
    low_angle, high_angle = steps * time, steps * FRAME_TABLE * time
    low, coarse = frames % FRAME_TABLE, frames // FRAME_TABLE
    cos_a, sin_a = jnp.asarray(np.cos(low_angle))[low], jnp.asarray(np.sin(low_angle))[low]
    cos_b, sin_b = jnp.asarray(np.cos(high_angle))[coarse], jnp.asarray(np.sin(high_angle))[coarse]
    return cos_a * cos_b - sin_a * sin_b, sin_a * cos_b + cos_a * sin_b


def rotate(
    x: Float[Array, "*b t n h"],
    by: tuple[Array, Array],
) -> Float[Array, "*b t n h"]:
    """Turns adjacent channel pairs (2i, 2i + 1), in at least float32.

    Args:
        x: queries or keys.
        by: cosines and sines from `rotation`, `[t, pairs]`; or with an axis of heads, shaped like
            `x` or its last three axes.

    Returns:
        `x` turned, in its own dtype.
    """
    kind = wide_dtype(x.dtype)  # which under x64 that of the tables isn't
    placed = (part[:, None] if part.ndim == 2 else part for part in by)
    cos, sin = (to_rank(part.astype(kind), x.ndim) for part in placed)
    if x.dtype != wide_dtype(x.dtype):
        # Of 16 bits, the channels of a pair change places in a product, exactly, since each of its
        # sums has one term. On a TPU, moving them about takes eight times as long.
        swap = jnp.asarray(np.eye(x.shape[-1])[np.arange(x.shape[-1]) ^ 1], x.dtype)
        swapped = jnp.matmul(x, swap, preferred_element_type=wide_dtype(x.dtype))
        signed = jnp.stack([-sin, sin], axis=-1).reshape(*sin.shape[:-1], -1)
        return (wide(x) * jnp.repeat(cos, 2, axis=-1) + swapped * signed).astype(x.dtype)
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)
