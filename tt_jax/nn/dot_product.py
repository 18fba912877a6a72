"""Softmax attention as XLA compiles it, for any device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from tt_jax.nn.layers import to_rank, wide_dtype

LOGIT_BYTES = 256 * 2**20  # at most this much for one block of attention logits
CACHE_BYTES = 4 * 2**20  # on a CPU, which has this much cache, and some of it for a core alone


class Past(NamedTuple):
    """Keys and values that stand before a pass's own.

    Attributes:
        k: keys of all layers.
        v: values of all layers.
        layer: the one that is attended.
    """

    k: Float[Array, "l b p n h"]
    v: Float[Array, "l b p n h"]
    layer: Int[Array, ""]


def joined(
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    past: Past | None,
) -> tuple[Float[Array, "b keys n h"], Float[Array, "b keys n h"]]:
    """A layer's past and then a pass's own keys and values, each as one array.

    Args:
        k: keys.
        v: values.
        past: what stands before them; None for nothing.

    Returns:
        Keys and values.
    """
    if past is None:
        return k, v
    pair = (jax.lax.dynamic_index_in_dim(x, past.layer, keepdims=False) for x in past[:2])
    keys, values = (
        jnp.concatenate([old.astype(new.dtype), new], axis=1)
        for old, new in zip(pair, (k, v), strict=True)
    )
    return keys, values


def xla(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None,
    bias: Float[Array, " s"] | None = None,
    cached: bool = False,
) -> Float[Array, "b t n h"]:
    """Softmax attention, scale 1/sqrt(h), as XLA compiles it: for any device, dtype and mask.

    Logits and softmax are at least float32. Queries are taken in blocks, so that the logits never
    need more than 256 MB.

    Args:
        q: queries `[B, T, N, H]`.
        k: keys `[B, S, N, H]`.
        v: values `[B, S, N, H]`.
        mask: which keys a query may see, `[B or 1, T or 1, S]`; None for all.
        bias: added to the logits of each key, `[S]`; None for nothing.
        cached: take head by head and blocks whose logits stay in a CPU's cache, which another
            device would have to work on one after the other.

    Returns:
        `[B, T, N, H]` in the values' dtype. A query that may see no key at all gets the mean of
        all values.
    """
    b, t, n, h = q.shape
    row = 4 * k.shape[1]  # bytes of the logits of a query of one head
    whole = b * n * t * row
    again = whole > LOGIT_BYTES
    if not cached or whole <= CACHE_BYTES:
        return _in_blocks(q, k, v, mask, bias, LOGIT_BYTES // (b * n * row), again)

    def head(parts: tuple[Array, Array, Array, Array]) -> Float[Array, "1 t 1 h"]:
        number, queries, keys, values = parts
        seen = mask
        if mask is not None and mask.shape[0] > 1:
            seen = jax.lax.dynamic_index_in_dim(mask, number // n)
        return _in_blocks(queries, keys, values, seen, bias, CACHE_BYTES // row, again)

    apart = (jnp.swapaxes(x, 1, 2).reshape(b * n, 1, -1, 1, h) for x in (q, k, v))
    heads = jax.lax.map(head, (jnp.arange(b * n, dtype=jnp.int32), *apart))
    return jnp.swapaxes(heads.reshape(b, n, t, h), 1, 2)


def _in_blocks(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None,
    bias: Float[Array, " s"] | None,
    most: int,
    again: bool,
) -> Float[Array, "b t n h"]:
    """By blocks of at most so many queries, each made again in a backward pass if asked for: kept,
    all weights would need too much memory."""
    attend = jax.checkpoint(_attend) if again else _attend
    t = q.shape[1]
    if t <= most:
        return attend(q, k, v, mask, bias)
    block = block_size(t, max(1, most))
    count = -(-t // block)
    q = _padded(q, count * block)
    if mask is not None and mask.shape[1] > 1:
        mask = _padded(mask, count * block)

    def part(index: Int[Array, ""]) -> Float[Array, "b block n h"]:
        some = jax.lax.dynamic_slice_in_dim(q, index * block, block, axis=1)
        if mask is None or mask.shape[1] == 1:
            return attend(some, k, v, mask, bias)
        rows = jax.lax.dynamic_slice_in_dim(mask, index * block, block, axis=1)
        return attend(some, k, v, rows, bias)

    blocks = jax.lax.map(part, jnp.arange(count, dtype=jnp.int32))
    return jnp.moveaxis(blocks, 0, 1).reshape(q.shape)[:, :t]


def block_size(length: int, most: int) -> int:
    """Size of the blocks into which queries are cut.

    One that divides the length if it is at least half of `most`; else as few blocks as possible,
    about equal, of which the last is padded: a prime number costs what its neighbours do.

    Args:
        length: number of queries.
        most: the largest size.

    Returns:
        Queries in a block.
    """
    for size in range(most, (most - 1) // 2, -1):
        if length % size == 0:
            return size
    return -(-length // -(-length // most))


def _padded(x: Shaped[Array, "b t *s"], length: int) -> Shaped[Array, "b {length} *s"]:
    """`x` with zeros behind its queries, `length` in all."""
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))


def _attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None,
    bias: Float[Array, " s"] | None,
) -> Float[Array, "b t n h"]:
    # Heads in front, and the sum divided once a query and not once a weight: on a CPU a fifth less.
    kind = wide_dtype(q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    logits = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=kind) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + to_rank(bias.astype(kind), 4)
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, jnp.finfo(kind).min)
    most = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - most)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    product = jnp.einsum("bnts,bnsh->bnth", weights.astype(v.dtype), v, preferred_element_type=kind)
    return jnp.swapaxes((product / total).astype(v.dtype), 1, 2)
