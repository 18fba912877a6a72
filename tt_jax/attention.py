"""Attention behind one door, and the rotary positions of its queries and keys."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tt_jax.layers import wide, wide_dtype
from tt_jax.sharding import parted

THETA = 10000.0
FRAME_TABLE = 4096  # a frame index is split into a remainder and a multiple of this
LOGIT_BYTES = 256 * 2**20  # at most this much for one block of attention logits


class Choice(NamedTuple):
    """An implementation of attention, and in a few words why it and no other."""

    impl: str
    why: str


def attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None = None,
    impl: str | None = None,
) -> Float[Array, "b t n h"]:
    """Softmax attention, scale 1/sqrt(h), over the keys that `mask` allows (all without one).

    impl: "xla" (anywhere), "splash" (TPU) or "cudnn" (NVIDIA); `choice` if not given. The kernels
        take one mask for all queries of a sample. Where a query may see no key, they differ.

    Raises ValueError for a mask that the implementation can't take.
    """
    impl = choice(q, k, mask).impl if impl is None else impl
    if impl == "xla":
        return parted(xla, q, k, v, mask)
    from tt_jax import kernels  # here: importing Pallas takes longer than all the rest

    if mask is not None and mask.shape[1] > 1:
        raise ValueError(f"{impl} attention takes one mask for all queries: use xla.")
    return parted(kernels.IMPLEMENTATIONS[impl], q, k, v, mask)


def choice(
    q: Float[Array | jax.ShapeDtypeStruct, "b t n h"],
    k: Float[Array | jax.ShapeDtypeStruct, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None = None,
) -> Choice:
    """Which implementation `attention` takes for these shapes, and why.

    The device is that of the mesh set by `jax.set_mesh`, else JAX's default. Arrays may be
    abstract (`jax.ShapeDtypeStruct`).
    """
    platform, kind, capability = _device()
    width, dtype = q.shape[-1], jnp.dtype(q.dtype)
    if platform not in ("tpu", "gpu", "cuda"):
        return Choice("xla", f"a {platform} has no kernel of its own")
    if mask is not None and mask.shape[1] > 1:
        return Choice("xla", "the mask differs between queries")
    if platform == "tpu":
        if dtype != jnp.bfloat16 or width % 128:
            return Choice("xla", f"splash is for bfloat16 and widths of 128, not {dtype}, {width}")
        if min(q.shape[1], k.shape[1]) < 128:
            return Choice("xla", "fewer than 128 queries or keys: they would be mostly padding")
        return Choice("splash", f"{kind}, bfloat16, head width {width}")
    if "NVIDIA" not in kind or capability < 8:
        return Choice("xla", f"cuDNN's is for NVIDIA from compute capability 8 on, not {kind}")
    if dtype not in (jnp.bfloat16, jnp.float16) or width % 8 or width > 128:
        return Choice("xla", f"cuDNN's is for 16 bits and widths up to 128, not {dtype}, {width}")
    return Choice("cudnn", f"{kind}, {dtype}, head width {width}")


def _device() -> tuple[str, str, float]:
    """Platform and kind of the device that a program is traced for; CUDA's compute capability."""
    mesh = jax.sharding.get_abstract_mesh()
    # JAX's options become attributes when it is imported.
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if not mesh.empty:
        device = mesh.abstract_device
    elif default is None or isinstance(default, str):
        device = jax.devices(default)[0]
    else:
        device = default
    capability = getattr(jax.devices()[0], "compute_capability", 0)
    return device.platform, device.device_kind, float(capability)


def xla(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None,
) -> Float[Array, "b t n h"]:
    """Attention as XLA compiles it, for any device, dtype and mask.

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
