"""The kernels `attention` chooses from: splash attention on a TPU, cuDNN's on an NVIDIA GPU."""

from functools import partial
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    SegmentIds,
    make_splash_mha_single_device,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask import (
    FullMask,
    MultiHeadMask,
)
from jaxtyping import Array, Bool, Float, Int

from tt_jax.nn.dot_product import xla
from tt_jax.nn.layers import wide

BLOCK = 1024  # at most this many queries, and keys, in a block of splash attention
ROWS, LANES = 16, 128  # multiples of which blocks are: of queries (bfloat16's tile) and of keys


def blocks(length: int, unit: int) -> tuple[int, int]:
    """As few blocks as possible, then as small as possible.

    Args:
        length: of what is cut.
        unit: of whose multiples a block is.

    Returns:
        Size of a block, at most `BLOCK`, and the length padded to whole blocks.
    """
    count = -(-length // BLOCK)
    size = -(-length // (count * unit)) * unit
    return size, count * size


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def splash(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b 1 s"] | None,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Pallas's splash attention on a TPU, with the gradient of `xla`.

    Keys that the mask hides, and padding, are a segment of their own.

    Args:
        q: queries `[B, T, N, H]`.
        k: keys `[B, S, N, H]`.
        v: values `[B, S, N, H]`.
        mask: which keys a sample's queries may see, `[B or 1, 1, S]`; None for all.
        interpret: run the kernel's body step by step on any device, to test it.

    Returns:
        `[B, T, N, H]`.
    """
    b, t, n, h = q.shape
    s = k.shape[1]
    rows, queries = blocks(t, ROWS)
    columns, keys = blocks(s, LANES)
    q = (wide(q) * h**-0.5).astype(q.dtype)

    def padded(x: Array, length: int) -> Float[Array, "b n length h"]:
        x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
        return jnp.swapaxes(x, 1, 2)

    kernel = make_splash_mha_single_device(
        MultiHeadMask([FullMask((queries, keys))] * n),
        block_sizes=BlockSizes(block_q=rows, block_kv=columns),
        interpret=interpret,
    )
    segments = None
    if mask is not None or keys > s:
        seen = jnp.ones((b, s), bool) if mask is None else jnp.broadcast_to(mask[:, 0], (b, s))
        seen = jnp.pad(seen, ((0, 0), (0, keys - s))).astype(jnp.int32)
        segments = SegmentIds(jnp.ones((b, queries), jnp.int32), seen)
    out = jax.vmap(kernel)(padded(q, queries), padded(k, keys), padded(v, keys), segments)
    out = cast(Array, out)  # it would be a tuple with the logits' sums
    return jnp.swapaxes(out, 1, 2)[:, :t]


def _forward(q, k, v, mask, interpret):
    return splash(q, k, v, mask, interpret), (q, k, v, mask)


def _backward(interpret, kept, gradient):
    q, k, v, mask = kept
    _, pull = jax.vjp(lambda q, k, v: xla(q, k, v, mask), q, k, v)
    return *pull(gradient), None


splash.defvjp(_forward, _backward)


def compact(
    k: Float[Array, "b s n h"], v: Float[Array, "b s n h"], mask: Bool[Array, "#b 1 s"]
) -> tuple[Float[Array, "b s n h"], Float[Array, "b s n h"], Int[Array, " b"]]:
    """Keys and values with those that the mask allows in front, in their order.

    Exact, since attention doesn't care in which order keys stand once their positions are in them.

    Args:
        k: keys `[B, S, N, H]`.
        v: values `[B, S, N, H]`.
        mask: which keys a sample's queries may see, `[B or 1, 1, S]`.

    Returns:
        Keys, values, and the number of allowed ones of each sample, int32.
    """
    seen = jnp.broadcast_to(mask[:, 0], k.shape[:2])
    order = jnp.argsort(~seen, axis=1, stable=True)[..., None, None]
    k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
    return k, v, jnp.sum(seen, axis=1, dtype=jnp.int32)


def cudnn(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b 1 s"] | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b t n h"]:
    """cuDNN's flash attention on an NVIDIA GPU.

    A mask would become a bias `[B, N, T, S]` in full, so the keys are compacted and their number is
    given instead.

    Args:
        q: queries `[B, T, N, H]`.
        k: keys `[B, S, N, H]`.
        v: values `[B, S, N, H]`.
        mask: which keys a sample's queries may see, `[B or 1, 1, S]`; None for all.
        implementation: "xla" takes the same way on any device, to test it.

    Returns:
        `[B, T, N, H]`.
    """
    length = None
    if mask is not None:
        k, v, length = compact(k, v, mask)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=length, implementation=implementation
    )


IMPLEMENTATIONS = {"splash": splash, "cudnn": cudnn}
