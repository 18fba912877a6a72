"""Attention by the implementation that suits the device, the dtype and the mask."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from tt_jax.nn.dot_product import Past, joined, xla
from tt_jax.sharding import sharded


class Choice(NamedTuple):
    """An implementation of attention.

    Attributes:
        impl: its name, as `attention` takes it.
        why: it and no other, in a few words.
    """

    impl: str
    why: str


def attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t keys"] | None = None,
    impl: str | None = None,
    bias: Float[Array, " keys"] | None = None,
    past: Past | None = None,
) -> Float[Array, "b t n h"]:
    """Softmax attention, scale 1/sqrt(h).

    Args:
        q: queries `[B, T, N, H]`.
        k: keys `[B, S, N, H]`.
        v: values `[B, S, N, H]`.
        mask: which keys a query may see, the past's and then `k`, `[B or 1, T or 1, P + S]`; None
            for all. Where a query may see none, implementations differ.
        impl: "xla" (anywhere), "flash" (TPU) or "cudnn" (NVIDIA); what `choice` says if not
            given, or "xla" with a bias.
        bias: added to the logits of each key, `[P + S]`; None for nothing.
        past: keys and values that stand before `k` and `v`.

    Returns:
        `[B, T, N, H]` in the dtype of the values.

    Raises:
        ValueError: `impl` is a kernel, and there is a bias, or the mask differs between the
            queries of a sample.
    """
    if bias is not None and impl not in (None, "xla"):
        raise ValueError(f"{impl} attention takes no bias: use xla.")
    impl = "xla" if bias is not None else choice(q, k, mask).impl if impl is None else impl
    if impl == "xla":
        attend = partial(xla, bias=bias, cached=device_of(q)[0] == "cpu")
        return sharded(attend, q, *joined(k, v, past), mask)
    from tt_jax.nn import kernels  # here: importing Pallas takes longer than all the rest

    if mask is not None and mask.shape[1] > 1:
        raise ValueError(f"{impl} attention takes one mask for all queries: use xla.")
    return sharded(kernels.IMPLEMENTATIONS[impl], q, k, v, mask, past)


def choice(
    q: Float[Array | jax.ShapeDtypeStruct, "b t n h"],
    k: Float[Array | jax.ShapeDtypeStruct, "b s n h"],
    mask: Bool[Array | jax.ShapeDtypeStruct, "#b #t keys"] | None = None,
) -> Choice:
    """Which implementation `attention` takes, and why.

    Args:
        q: queries `[B, T, N, H]`. Where they are decides; where they are nowhere, since a program
            is traced or they are abstract (`jax.ShapeDtypeStruct`), the mesh set by
            `jax.set_mesh`, and without one JAX's default device.
        k: keys `[B, S, N, H]`.
        mask: which keys a query may see, `[B or 1, T or 1, keys]`; None for all.

    Returns:
        The name of the implementation, and the reason in words.
    """
    platform, kind, capability = device_of(q)
    width, dtype = q.shape[-1], jnp.dtype(q.dtype)
    if platform not in ("tpu", "gpu", "cuda"):
        return Choice("xla", f"a {platform} has no kernel of its own")
    if mask is not None and mask.shape[1] > 1:
        return Choice("xla", "the mask differs between queries")
    if platform == "tpu":
        if dtype != jnp.bfloat16 or width % 128:
            return Choice("xla", f"flash is for bfloat16 and widths of 128, not {dtype}, {width}")
        if min(q.shape[1], k.shape[1]) < 128:
            return Choice("xla", "fewer than 128 queries or keys: they would be mostly padding")
        return Choice("flash", f"{kind}, bfloat16, head width {width}")
    if "NVIDIA" not in kind or capability < 8:
        return Choice("xla", f"cuDNN's is for NVIDIA from compute capability 8 on, not {kind}")
    if dtype not in (jnp.bfloat16, jnp.float16) or width % 8 or width > 128:
        return Choice("xla", f"cuDNN's is for 16 bits and widths up to 128, not {dtype}, {width}")
    return Choice("cudnn", f"{kind}, {dtype}, head width {width}")


def device_of(x: Any) -> tuple[str, str, float]:
    """Platform and kind of the device that has `x`, or that a program is traced for; CUDA's
    compute capability."""
    mesh = jax.sharding.get_abstract_mesh()
    # JAX's options become attributes when it is imported.
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(x, jax.Array) and not isinstance(x, Tracer):
        device = next(iter(x.devices()))
    elif not mesh.empty and mesh.abstract_device is not None:
        device = mesh.abstract_device
    elif default is None or isinstance(default, str):
        device = jax.devices(default)[0]
    else:
        device = default
    known = device if hasattr(device, "compute_capability") else jax.devices()[0]
    capability = getattr(known, "compute_capability", 0)
    return device.platform, device.device_kind, float(capability)
