"""The kernels `attention` chooses from: our own on a TPU, cuDNN's on an NVIDIA GPU."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tt_jax.nn.dot_product import Past, joined
from tt_jax.nn.flash import flash


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
    mask: Bool[Array, "#b 1 keys"] | None,
    past: Past | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b t n h"]:
    """cuDNN's flash attention on an NVIDIA GPU.

    A mask would become a bias `[B, N, T, S]` in full, so the keys are compacted and their number is
    given instead.

    Args:
        q: queries `[B, T, N, H]`.
        k: keys `[B, S, N, H]`.
        v: values `[B, S, N, H]`.
        mask: which of the past's keys, then of `k`, a sample's queries may see; None for all.
        past: as `flash` takes it.
        implementation: "xla" takes the same way on any device, to test it.

    Returns:
        `[B, T, N, H]`.
    """
    length = None
    k, v = joined(k, v, past)
    if mask is not None:
        k, v, length = compact(k, v, mask)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=length, implementation=implementation
    )


IMPLEMENTATIONS = {"flash": flash, "cudnn": cudnn}
