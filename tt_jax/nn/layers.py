"""Layers that the transformers and the VAE share. They compute in the dtype of their own weights;
norms and softmax run in at least float32 (by promotion, so that float64 weights stay float64)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Shaped


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """`dtype`, but at least float32. (JAX's own promotion refuses this where it is strict.)"""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def wide(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """`x` in at least float32: the precision of norms, softmax, rotation and modulation."""
    return x.astype(wide_dtype(x.dtype))


def to_rank(x: Shaped[Array, "*s"], rank: int) -> Shaped[Array, "*r"]:
    """Broadcasting that is asked for: axes of size one in front.

    (JAX does the same unasked, but for people who run with `jax_numpy_rank_promotion="raise"`.)

    Args:
        x: an array of at most `rank` axes.
        rank: number of axes.

    Returns:
        `x` with that many.
    """
    return jnp.expand_dims(x, tuple(range(rank - x.ndim)))


class Linear(nnx.Module):
    """`x @ kernel + bias`, in the kernel's dtype. kernel `[in, out]`, bias `[out]` or absent."""

    def __init__(
        self, in_dim: int, out_dim: int, *, bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        scale = in_dim**-0.5
        kernel = scale * jax.random.truncated_normal(rngs.params(), -2, 2, (in_dim, out_dim))
        self.kernel = nnx.Param(kernel.astype(dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros((out_dim,), dtype)) if bias else None)

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        y = x.astype(self.kernel.dtype) @ self.kernel[...]
        return y if self.bias is None else y + to_rank(self.bias[...], y.ndim)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, `x / rms(x) * scale`; returns the input's dtype."""

    def __init__(self, dim: int, *, eps: float = 1e-6, dtype: DTypeLike) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((dim,), dtype))

    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        y = wide(x)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * to_rank(wide(self.scale[...]), y.ndim)).astype(x.dtype)


def layer_norm(x: Float[Array, "*s d"], eps: float = 1e-6) -> Float[Array, "*s d"]:
    """Layer norm over the last axis without scale and bias.

    Args:
        x: of any shape.
        eps: added to the variance.

    Returns:
        The same shape, at least float32.
    """
    y = wide(x)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis with scale and bias; returns at least float32."""

    def __init__(self, dim: int, *, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones((dim,), dtype))
        self.bias = nnx.Param(jnp.zeros((dim,), dtype))

    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        scale, bias = (to_rank(wide(part[...]), x.ndim) for part in (self.scale, self.bias))
        return layer_norm(x) * scale + bias


def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """The tanh approximation of GELU, which Wan and UMT5 use."""
    return jax.nn.gelu(x, approximate=True)


def patchify(
    frames: Float[Array, "*b h w c"], patch: int
) -> Float[Array, "*b h//{patch}*w//{patch} {patch}*{patch}*c"]:
    """Cuts frames into tokens, row by row.

    Args:
        frames: height and width are multiples of `patch`.
        patch: side of a token.

    Returns:
        Tokens, the values of each in the order (row, column, channel).
    """
    *lead, h, w, c = frames.shape
    x = frames.reshape(*lead, h // patch, patch, w // patch, patch, c)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, -1, patch * patch * c)


def unpatchify(
    tokens: Float[Array, "*b n d"], patch: int, height: int, width: int
) -> Float[Array, "*b {height} {width} c"]:
    """The inverse of `patchify`.

    Args:
        tokens: of whole frames, row by row.
        patch: side of a token.
        height: of the frames.
        width: of the frames.

    Returns:
        The frames, channels-last.
    """
    *lead, _, d = tokens.shape
    x = tokens.reshape(*lead, height // patch, width // patch, patch, patch, d // patch**2)
    return jnp.swapaxes(x, -4, -3).reshape(*lead, height, width, -1)
