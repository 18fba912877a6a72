"""Wan2.1's causal video VAE (arXiv 2503.20314): video to latents and back.

The first frame is an image of its own; after it, every `temporal_stride` frames share one latent
frame. Nothing looks ahead in time, so both directions can run piece by piece: each convolution
only remembers the last frames of its input. That memory is the `cache` here, a pytree of arrays
whose shapes don't change from step to step; `None` is the start of a video.

Axes: B batch, T frame, H height, W width, C channel; t, h, w those of the latents.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from tt_jax.nn.attention import attention
from tt_jax.nn.layers import Linear, to_rank, wide
from tt_jax.settings import sizes

Cache = Any  # nested tuples of arrays `[B, frames, H, W, C]`; None at the start of a video


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of a VAE, and the mean and deviation of its latents; the defaults are Wan2.1's.

    Args:
        dim: width of the first level.
        latent_channels: number of channels C of the latents.
        dim_mult: width of each level, times `dim`; between levels space is halved.
        res_blocks: residual blocks of a level of the encoder; the decoder has one more.
        temporal_downsample: whether time is halved as well, for each step between levels.
        mean: of each latent channel.
        std: deviation of each latent channel.

    Raises:
        ValueError: sizes that no VAE has.
    """

    dim: int = 96
    latent_channels: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    # fmt: off
    mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )
    std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )
    # fmt: on

    def __post_init__(self) -> None:
        sizes(self)
        if not self.dim_mult or min(self.dim_mult) < 1:
            raise ValueError(f"dim_mult needs whole numbers from 1 on, not {self.dim_mult}.")
        if any(self.dim * m % 2 for m in self.dim_mult[1:]):
            raise ValueError(
                "the decoder halves the width of every level but the first: dim x dim_mult must "
                f"be even, not {self.dim} x {self.dim_mult}."
            )
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError("temporal_downsample needs one entry less than dim_mult.")
        if not len(self.mean) == len(self.std) == self.latent_channels:
            raise ValueError("mean and std need one entry for each latent channel.")
        if min(self.std) <= 0:
            raise ValueError(f"std, the latents' deviations, must be above 0, not {min(self.std)}.")

    @property
    def spatial_stride(self) -> int:
        """Pixels along one side of a latent position."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        """Frames of one latent frame, but for the first, which is one frame."""
        return 2 ** sum(self.temporal_downsample)

    @classmethod
    def wan(cls) -> "VAEConfig":
        """The VAE of every Wan2.1 model."""
        return cls()


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
        return _run(layers, x, cache)


class Head(nnx.Module):
    """Norm, SiLU and convolution."""

    def __init__(self, in_dim: int, out_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm = Norm(in_dim, dtype=dtype)
        self.conv = Conv(in_dim, out_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b T h w i"], cache: Cache = None
    ) -> tuple[Float[Array, "b T h w o"], Cache]:
        return self.conv(jax.nn.silu(self.norm(x)), cache)


def _run(
    layers: Sequence[Callable], x: Float[Array, "b T h w i"], cache: Cache
) -> tuple[Float[Array, "b T2 h2 w2 o"], Cache]:
    """One layer after another, each with its part of the cache."""
    after = []
    for layer, past in zip(layers, cache or [None] * len(layers), strict=True):
        with jax.named_scope(type(layer).__name__):
            x, past = layer(x, past)
        after.append(past)
    return x, tuple(after)


class Encoder(nnx.Module):
    """Video `[B, T, H, W, 3]` to means and log-variances `[B, t, h, w, 2 C]`."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dims = [config.dim * m for m in config.dim_mult]
        self.conv_in = Conv(3, dims[0], dtype=dtype, rngs=rngs)
        self.levels = nnx.List()
        for i, dim in enumerate(dims):
            down = None
            if i < len(dims) - 1:
                down = Downsample(dim, config.temporal_downsample[i], dtype=dtype, rngs=rngs)
            before = dims[max(i - 1, 0)]
            level = Level(before, dim, config.res_blocks, down, dtype=dtype, rngs=rngs)
            self.levels.append(level)
        self.middle = Middle(dims[-1], dtype=dtype, rngs=rngs)
        self.head = Head(dims[-1], 2 * config.latent_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b T h w 3"], cache: Cache = None
    ) -> tuple[Float[Array, "b t h2 w2 c"], Cache]:
        return _run([self.conv_in, *self.levels, self.middle, self.head], x, cache)


class Decoder(nnx.Module):
    """Latents `[B, t, h, w, C]` to video `[B, T, H, W, 3]`."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dims = [config.dim * m for m in reversed(config.dim_mult)]
        temporal = config.temporal_downsample[::-1]
        self.conv_in = Conv(config.latent_channels, dims[0], dtype=dtype, rngs=rngs)
        self.middle = Middle(dims[0], dtype=dtype, rngs=rngs)
        self.levels = nnx.List()
        before = dims[0]
        for i, dim in enumerate(dims):
            up = None
            if i < len(dims) - 1:
                up = Upsample(dim, temporal[i], dtype=dtype, rngs=rngs)
            level = Level(before, dim, config.res_blocks + 1, up, dtype=dtype, rngs=rngs)
            self.levels.append(level)
            before = dim // 2
        self.head = Head(dims[-1], 3, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: Cache = None
    ) -> tuple[Float[Array, "b T h2 w2 3"], Cache]:
        return _run([self.conv_in, self.middle, *self.levels, self.head], x, cache)


def _stream(
    step: Callable, x: Float[Array, "b T h w i"], cache: Cache, size: int
) -> tuple[Float[Array, "b T2 h2 w2 o"], Cache]:
    """`step(x, cache)` on `size` frames after the other: the memory of one step.

    The first frame of a video (`cache` is None) is a step of its own.
    """
    parts = []
    if cache is None:
        y, cache = step(x[:, :1], None)
        parts.append(y)
        x = x[:, 1:]
    if x.shape[1]:
        b, t, *rest = x.shape
        groups = jnp.moveaxis(x.reshape(b, t // size, size, *rest), 1, 0)

        def body(cache: Cache, group: Array) -> tuple[Cache, Array]:
            y, cache = step(group, cache)
            return cache, y

        cache, y = jax.lax.scan(body, cache, groups)
        parts.append(jnp.moveaxis(y, 0, 1).reshape(b, -1, *y.shape[3:]))
    return jnp.concatenate(parts, axis=1), cache


class VAE(nnx.Module):
    """Encoder and decoder. Video is in [-1, 1], latents are normalised by `config.mean` and `std`.

    T frames and t latent frames: t = 1 + (T - 1) // temporal_stride; surplus frames are dropped.
    It computes in the dtype of its parameters; that is the video's dtype, latents are at least
    float32. `encode`, `decode` and `decode_stream` go through time step by step in the memory of
    one step; `encode_moments` and `decode_raw` take a clip at once, for training.
    """

    def __init__(
        self, config: VAEConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        c = config.latent_channels
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.to_moments = Linear(2 * c, 2 * c, dtype=dtype, rngs=rngs)
        self.from_latents = Linear(c, c, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)

    def _whole_groups(self, video: Float[Array, "b T h w 3"]) -> Float[Array, "b T2 h w 3"]:
        side, stride = self.config.spatial_stride, self.config.temporal_stride
        frames, height, width = video.shape[1:4]
        if height % side or width % side:
            raise ValueError(
                f"a video of {height}x{width} needs sides that are multiples of {side}."
            )
        return video[:, : frames - (frames - 1) % stride]

    def _normal(
        self, dtype: DTypeLike
    ) -> tuple[Float[np.ndarray, "1 1 1 1 c"], Float[np.ndarray, "1 1 1 1 c"]]:
        """Mean and deviation of the latents, channel by channel."""
        mean, std = (np.asarray(x, dtype) for x in (self.config.mean, self.config.std))
        return mean[None, None, None, None], std[None, None, None, None]

    def _moments(
        self, x: Float[Array, "b t h w c"]
    ) -> tuple[Float[Array, "b t h w c//2"], Float[Array, "b t h w c//2"]]:
        """Normalised mean and log-variance from the encoder's output; at least float32."""
        mean, log_variance = jnp.split(wide(self.to_moments(x)), 2, axis=-1)
        centre, std = self._normal(mean.dtype)
        mean = (mean - centre) / std
        # Wan bounds the log-variance before use.
        log_variance = jnp.clip(log_variance, -30, 20) - 2 * np.log(std)
        return mean, log_variance

    def _decode(
        self, latents: Float[Array, "b t h w c"], cache: Cache = None
    ) -> tuple[Float[Array, "b T H W 3"], Cache]:
        x = wide(latents)
        mean, std = self._normal(x.dtype)
        x = x * std + mean
        return self.decoder(self.from_latents(x), cache)

    def encode(self, video: Float[Array, "b T H W 3"]) -> Float[Array, "b t h w c"]:
        """Latents of a video, step by step in time.

        Args:
            video: `[B, T, H, W, 3]` in [-1, 1]; sides are multiples of `config.spatial_stride`.

        Returns:
            The latents' mean `[B, t, h, w, C]`, normalised; at least float32.

        Raises:
            ValueError: a side isn't a multiple.
        """
        size = self.config.temporal_stride
        x, _ = _stream(self.encoder, self._whole_groups(video), None, size)
        return self._moments(x)[0]

    def encode_moments(
        self, video: Float[Array, "b T H W 3"]
    ) -> tuple[Float[Array, "b t h w c"], Float[Array, "b t h w c"]]:
        """Mean and log-variance of the latents, for training: the whole clip at once.

        Args:
            video: `[B, T, H, W, 3]` in [-1, 1]; sides are multiples of `config.spatial_stride`.

        Returns:
            Both `[B, t, h, w, C]`, of normalised latents; at least float32.

        Raises:
            ValueError: a side isn't a multiple.
        """
        return self._moments(self.encoder(self._whole_groups(video))[0])

    def decode(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b T H W 3"]:
        """The video of latents, step by step in time.

        Args:
            latents: `[B, t, h, w, C]`, normalised.

        Returns:
            `[B, T, H, W, 3]`, clamped to [-1, 1], in the dtype of the parameters.
        """
        return self.decode_stream(None, latents)[0]

    def decode_raw(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b T H W 3"]:
        """The video of latents, not clamped, for training: the whole clip at once.

        Args:
            latents: `[B, t, h, w, C]`, normalised.

        Returns:
            `[B, T, H, W, 3]` in the dtype of the parameters.
        """
        return self._decode(latents)[0]

    def decode_stream(
        self, cache: Cache, latents: Float[Array, "b n h w c"]
    ) -> tuple[Float[Array, "b N H W 3"], Cache]:
        """The next frames of a video. All parts together are what `decode` makes of the whole, bit
        for bit.

        Args:
            cache: what the call before returned; None at the start of a video.
            latents: `[B, n, h, w, C]`, normalised.

        Returns:
            The frames `[B, N, H, W, 3]`, clamped to [-1, 1], and the cache for those after them. At
            the start N = 1 + stride (n - 1), later stride n, of `config.temporal_stride`.
        """
        frames, cache = _stream(self._decode, latents, cache, 1)
        return jnp.clip(frames, -1, 1), cache
