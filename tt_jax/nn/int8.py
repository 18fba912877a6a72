"""Linear layers with weights of 8 bits: a scale for each output channel.

The weights alone are small; activations stay. By a TPU v5e's compiler, to round these too, token by
token, takes as long as products of whole numbers save.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int8

from tt_jax.nn.layers import to_rank, wide

KINDS = ("int8",)
MOST = 127  # symmetric: -128 isn't used


class Rounded(NamedTuple):
    """Numbers as `values * scale`.

    Attributes:
        values: from -127 to 127.
        scale: float32, of size one along the axis that shares it.
    """

    values: Int8[np.ndarray, "*s"]
    scale: Float[np.ndarray, "*t"]


def check(quantize: str | None) -> None:
    """Raises ValueError for a setting that isn't None or one of `KINDS`."""
    if quantize is not None and quantize not in KINDS:
        raise ValueError(f"weights can be quantised to {', '.join(KINDS)}, not {quantize!r}.")


def round_to_int8(array: Float[np.ndarray, "*s"], axis: int) -> Rounded:
    """Rounds weights, on the host.

    Args:
        array: the weights.
        axis: along which one scale is shared: the inputs of a linear layer.

    Returns:
        The nearest multiples of each scale; zeros where all weights of a scale are zero.
    """
    x = np.asarray(array, np.float32)
    scale = np.abs(x).max(axis=axis, keepdims=True) / np.float32(MOST)
    values = np.rint(x / np.where(scale > 0, scale, np.float32(1))).astype(np.int8)
    return Rounded(values, scale)


def matmul(
    x: Float[Array, "*s i"], kernel: Int8[Array, "i o"], scale: Float[Array, " o"]
) -> Float[Array, "*s o"]:
    """`x @ (kernel * scale)`.

    Args:
        x: activations.
        kernel: rounded weights.
        scale: of each output channel.

    Returns:
        The product, in the dtype of `x`.
    """
    y = wide(x @ kernel.astype(x.dtype))
    return (y * to_rank(scale.astype(y.dtype), y.ndim)).astype(x.dtype)


class Int8Linear(nnx.Module):
    """`Linear` with rounded weights. kernel `[in, out]`, scale `[out]`, bias `[out]` or absent.

    It computes in the dtype of its input.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        kernel = jax.random.randint(rngs.params(), (in_dim, out_dim), -MOST, MOST + 1, jnp.int8)
        self.kernel = nnx.Param(kernel)
        # Such that outputs are about as large as inputs.
        scale = jnp.full((out_dim,), in_dim**-0.5 * 3**0.5 / MOST, jnp.float32)
        self.scale = nnx.Param(scale)
        self.bias = nnx.data(nnx.Param(jnp.zeros((out_dim,), dtype)) if bias else None)

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        y = matmul(x, self.kernel[...], self.scale[...])
        return y if self.bias is None else y + to_rank(self.bias[...], y.ndim)
