"""Layers of the causal video VAE, each with the memory of its last frames (`Cache`).

Axes: B batch, T frame, H height, W width, C channel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from tt_jax.nn.attention import attention
from tt_jax.nn.layers import Linear, to_rank, wide

Cache = Any  # nested tuples of arrays `[B, frames, H, W, C]`; None at the start of a video


def _prepend(
    x: Float[Array, "b T h w c"], past: Cache, count: int
) -> tuple[Float[Array, "b T+{count} h w c"], Float[Array, "b {count} h w c"]]:
    """`x` after the `count` frames before it (zeros at the start), and the last `count` of all."""
    if past is None:
        b, _, h, w, c = x.shape
        past = jnp.zeros((b, count, h, w, c), x.dtype)
    x = jnp.concatenate([past, x], axis=1)
    return x, x[:, x.shape[1] - count :]


class Conv(nnx.Module):
    """Convolution, causal in time, zero-padded to keep height and width (over `stride`).

    kernel `[kt, kh, kw, in, out]`, bias `[out]`. It sees the `kt - stride[0]` frames before `x`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        size: tuple[int, int, int] = (3, 3, 3),
        *,
        stride: tuple[int, int] = (1, 1),
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride = stride
        self.past = size[0] - stride[0]
        scale = (in_dim * np.prod(size)) ** -0.5
        kernel = scale * jax.random.truncated_normal(rngs.params(), -2, 2, (*size, in_dim, out_dim))
        self.kernel = nnx.Param(kernel.astype(dtype))
        self.bias = nnx.Param(jnp.zeros((out_dim,), dtype))

    def __call__(
        self, x: Float[Array, "b T h w i"], past: Cache = None
    ) -> tuple[Float[Array, "b T2 h2 w2 o"], Cache]:
        kernel = self.kernel[...]
        x, past = _prepend(x.astype(kernel.dtype), past, self.past)
        step, side = self.stride
        taps = kernel.shape[0]
        frames = (x.shape[1] - taps) // step + 1

        # The frames under the kernel become channels of one 2D convolution, which XLA runs several
        # times faster on a CPU than one in 3D.
        x = jnp.concatenate([x[:, i : i + step * frames : step] for i in range(taps)], axis=-1)
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[2:]),
            jnp.concatenate(list(kernel), axis=-2),
            (side, side),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape(x.shape[0], frames, *y.shape[1:])
        return y + to_rank(self.bias[...], y.ndim), past


class Norm(nnx.Module):
    """`x` over its length along the channels, times sqrt(C) and `scale`; at least float32."""

    def __init__(self, dim: int, *, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones((dim,), dtype))

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        y = wide(x)
        # The floor of 1e-12 on the length, put on its square: the gradient at 0 stays finite.
        y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), 1e-24))
        return y * to_rank(x.shape[-1] ** 0.5 * wide(self.scale[...]), y.ndim)


class ResBlock(nnx.Module):
    """Two times norm, SiLU and convolution, beside a shortcut."""

    def __init__(self, in_dim: int, out_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm1 = Norm(in_dim, dtype=dtype)
        self.conv1 = Conv(in_dim, out_dim, dtype=dtype, rngs=rngs)
        self.norm2 = Norm(out_dim, dtype=dtype)
        self.conv2 = Conv(out_dim, out_dim, dtype=dtype, rngs=rngs)
        same = in_dim == out_dim
        self.shortcut = nnx.data(None if same else Linear(in_dim, out_dim, dtype=dtype, rngs=rngs))

    def __call__(
        self, x: Float[Array, "b T h w i"], cache: Cache = None
    ) -> tuple[Float[Array, "b T h w o"], Cache]:
        past1, past2 = cache or (None, None)
        y, past1 = self.conv1(jax.nn.silu(self.norm1(x)), past1)
        y, past2 = self.conv2(jax.nn.silu(self.norm2(y)), past2)
        return y + (x if self.shortcut is None else self.shortcut(x)), (past1, past2)


class Attention(nnx.Module):
    """Residual self-attention with one head among the positions of a frame."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm = Norm(dim, dtype=dtype)
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b T h w c"]) -> Float[Array, "b T h w c"]:
        b, t, h, w, c = x.shape
        q, k, v = jnp.split(self.qkv(self.norm(x)).reshape(b * t, h * w, 1, 3 * c), 3, axis=-1)
        return x + self.out(attention(q, k, v).reshape(x.shape))


class Downsample(nnx.Module):
    """Halves height and width, then, if `temporal`, the number of frames but the first."""

    def __init__(self, dim: int, temporal: bool, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.space = Conv(dim, dim, (1, 3, 3), stride=(1, 2), dtype=dtype, rngs=rngs)
        self.time = nnx.data(
            Conv(dim, dim, (3, 1, 1), stride=(2, 1), dtype=dtype, rngs=rngs) if temporal else None
        )

    def __call__(
        self, x: Float[Array, "b T h w c"], past: Cache = None
    ) -> tuple[Float[Array, "b T2 h//2 w//2 c"], Cache]:
        x, _ = self.space(x)
        if self.time is None:
            return x, None
        if past is not None:
            return self.time(x, past)
        first = x[:, :1]
        rest, past = self.time(x[:, 1:], first)
        return jnp.concatenate([first, rest], axis=1), past


class Upsample(nnx.Module):
    """Doubles, if `temporal`, the number of frames but the first, then height and width."""

    def __init__(self, dim: int, temporal: bool, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.time = nnx.data(
            Conv(dim, 2 * dim, (3, 1, 1), dtype=dtype, rngs=rngs) if temporal else None
        )
        self.space = Conv(dim, dim // 2, (1, 3, 3), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b T h w c"], past: Cache = None
    ) -> tuple[Float[Array, "b T2 2*h 2*w c//2"], Cache]:
        if self.time is not None and past is not None:
            x, past = _double(self.time, x, past)
        elif self.time is not None:
            # Wan's convolution never sees the first frame: the second one has zeros before it.
            rest, past = _double(self.time, x[:, 1:], None)
            x = jnp.concatenate([x[:, :1], rest], axis=1)
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return self.space(x)[0], past


def _double(
    time: Conv, x: Float[Array, "b T h w c"], past: Cache
) -> tuple[Float[Array, "b 2*T h w c"], Cache]:
    b, t, h, w, c = x.shape
    y, past = time(x, past)
    y = jnp.moveaxis(y.reshape(b, t, h, w, 2, c), 4, 2)
    return y.reshape(b, 2 * t, h, w, c), past


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.block1 = ResBlock(dim, dim, dtype=dtype, rngs=rngs)
        self.attention = Attention(dim, dtype=dtype, rngs=rngs)
        self.block2 = ResBlock(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b T h w c"], cache: Cache = None
    ) -> tuple[Float[Array, "b T h w c"], Cache]:
        past1, past2 = cache or (None, None)
        x, past1 = self.block1(x, past1)
        x, past2 = self.block2(self.attention(x), past2)
        return x, (past1, past2)


class Level(nnx.Module):
    """The residual blocks of one resolution, and the way to the next (none after the last)."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        blocks: int,
        resample: Downsample | Upsample | None,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        dims = (in_dim, *(out_dim,) * (blocks - 1))
        self.blocks = nnx.List(ResBlock(d, out_dim, dtype=dtype, rngs=rngs) for d in dims)
        self.resample = nnx.data(resample)

    def __call__(
        self, x: Float[Array, "b T h w i"], cache: Cache = None
    ) -> tuple[Float[Array, "b T2 h2 w2 o"], Cache]:
        layers = [*self.blocks, *([] if self.resample is None else [self.resample])]
        return run(layers, x, cache)


class Head(nnx.Module):
    """Norm, SiLU and convolution."""

    def __init__(self, in_dim: int, out_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm = Norm(in_dim, dtype=dtype)
        self.conv = Conv(in_dim, out_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b T h w i"], cache: Cache = None
    ) -> tuple[Float[Array, "b T h w o"], Cache]:
        return self.conv(jax.nn.silu(self.norm(x)), cache)


def run(
    layers: Sequence[Callable], x: Float[Array, "b T h w i"], cache: Cache
) -> tuple[Float[Array, "b T2 h2 w2 o"], Cache]:
    """One layer after another, each with its part of the cache.

    Args:
        layers: each from frames and its memory to frames and memory.
        x: frames.
        cache: the layers' memories; None at the start of a video.

    Returns:
        The frames, and the memories after them.
    """
    after = []
    for layer, past in zip(layers, cache or [None] * len(layers), strict=True):
        with jax.named_scope(type(layer).__name__):
            x, past = layer(x, past)
        after.append(past)
    return x, tuple(after)
