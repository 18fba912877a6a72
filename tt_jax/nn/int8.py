"""Linear layers with weights of 8 bits: a scale for each output channel.

On a device whose matrix unit is faster with int8, each token's activations are rounded to int8 too,
by a scale of their own; elsewhere the weights alone are small.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int8

from tt_jax.nn.attention import device_of
from tt_jax.nn.layers import to_rank, wide

KINDS = ("int8",)
MOST = 127  # symmetric: -128 isn't used
GAINS = ("tpu",)  # platforms on which activations are rounded too


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
    x: Float[Array, "*s i"], kernel: Int8[Array, "i o"], scale: Float[Array, " o"], tokens: bool
) -> Float[Array, "*s o"]:
    """`x @ (kernel * scale)`.

    Args:
        x: activations.
        kernel: rounded weights.
        scale: of each output channel.
        tokens: round each token's activations to int8 too, and multiply whole numbers.

    Returns:
        The product, in the dtype of `x`. The gradient by `x` is that of unrounded activations.
    """
    if tokens:
        return _whole(x, kernel, scale)
    y = x @ kernel.astype(x.dtype)
    return (wide(y) * to_rank(scale.astype(wide(y).dtype), y.ndim)).astype(x.dtype)


@jax.custom_vjp
def _whole(x: Array, kernel: Array, scale: Array) -> Array:
    y = wide(x)
    most = jnp.max(jnp.abs(y), axis=-1, keepdims=True) / MOST
    values = jnp.round(y / jnp.where(most > 0, most, 1)).astype(jnp.int8)
    product = jnp.matmul(values, kernel, preferred_element_type=jnp.int32)
    factor = most * to_rank(scale.astype(most.dtype), y.ndim)
    return (product.astype(y.dtype) * factor).astype(x.dtype)


def _forward(x: Array, kernel: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return _whole(x, kernel, scale), (kernel, scale)


def _backward(kept: tuple[Array, Array], change: Array) -> tuple[Array, None, Array]:
    kernel, scale = kept
    scaled = (wide(change) * to_rank(scale, change.ndim)).astype(change.dtype)
    return scaled @ kernel.astype(change.dtype).T, None, jnp.zeros_like(scale)


_whole.defvjp(_forward, _backward)


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
        tokens = device_of(x)[0] in GAINS
        y = matmul(x, self.kernel[...], self.scale[...], tokens)
        return y if self.bias is None else y + to_rank(self.bias[...], y.ndim)
