"""Softmax attention as XLA compiles it, for any device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from tt_jax.nn.layers import to_rank, wide_dtype

LOGIT_BYTES = 256 * 2**20  # at most this much for one block of attention logits


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

    Returns:
        `[B, T, N, H]` in the values' dtype. A query that may see no key at all gets the mean of
        all values.
    """
    b, t, n, _ = q.shape
    s = k.shape[1]
    rows = max(1, LOGIT_BYTES // (4 * b * n * s))
    if t <= rows:
        return _attend(q, k, v, mask, bias)
    block = block_size(t, rows)
    count = -(-t // block)
    q = _padded(q, count * block)
    if mask is not None and mask.shape[1] > 1:
        mask = _padded(mask, count * block)

    def attend(index: Int[Array, ""]) -> Float[Array, "b block n h"]:
        part = jax.lax.dynamic_slice_in_dim(q, index * block, block, axis=1)
        if mask is None or mask.shape[1] == 1:
            return _attend(part, k, v, mask, bias)
        rows = jax.lax.dynamic_slice_in_dim(mask, index * block, block, axis=1)
        return _attend(part, k, v, rows, bias)

    # Recomputed in a backward pass: kept, the weights would need all the memory at once.
    blocks = jax.lax.map(jax.checkpoint(attend), jnp.arange(count, dtype=jnp.int32))
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
    kind = wide_dtype(q.dtype)
    logits = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=kind) * q.shape[-1] ** -0.5
    if bias is not None:
        logits = logits + to_rank(bias.astype(kind), 4)
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, jnp.finfo(kind).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)
