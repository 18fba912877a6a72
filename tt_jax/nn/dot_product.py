"""Softmax attention as XLA compiles it, for any device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.nn.layers import wide_dtype

LOGIT_BYTES = 256 * 2**20  # at most this much for one block of attention logits


def xla(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None,
    bias: Float[Array, " s"] | None = None,
) -> Float[Array, "b t n h"]:
    """Attention as XLA compiles it, for any device, dtype and mask.

    bias: added to the logits of each key.

    Logits and softmax are at least float32. Queries are taken in blocks, so that the logits never
    need more than 256 MB. A query that may see no key at all returns the mean of all values.
    """
    b, t, n, _ = q.shape
    s = k.shape[1]
    rows = max(1, LOGIT_BYTES // (4 * b * n * s))
    if t <= rows:
        return _attend(q, k, v, mask, bias)
    block = next(size for size in range(min(rows, t), 0, -1) if t % size == 0)

    def attend(index: Int[Array, ""]) -> Float[Array, "b block n h"]:
        part = jax.lax.dynamic_slice_in_dim(q, index * block, block, axis=1)
        if mask is None or mask.shape[1] == 1:
            return _attend(part, k, v, mask, bias)
        rows = jax.lax.dynamic_slice_in_dim(mask, index * block, block, axis=1)
        return _attend(part, k, v, rows, bias)

    # Recomputed in a backward pass: kept, the weights would need all the memory at once.
    blocks = jax.lax.map(jax.checkpoint(attend), jnp.arange(t // block))
    return jnp.moveaxis(blocks, 0, 1).reshape(q.shape)


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
        logits = logits + bias.astype(kind)
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, jnp.finfo(kind).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, v)
