"""Wan2.1's causal video VAE (arXiv 2503.20314): video to latents and back.

The first frame is an image of its own; after it, every `temporal_stride` frames share one latent
frame. Nothing looks ahead in time, so both directions can run piece by piece: each convolution
only remembers the last frames of its input. That memory is the `cache` here, a pytree of arrays
whose shapes don't change from step to step; `None` is the start of a video.

Axes: B batch, T frame, H height, W width, C channel; t, h, w those of the latents.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from tt_jax.models.vae_layers import Cache, Conv, Downsample, Head, Level, Middle, Upsample, run
from tt_jax.nn.layers import Linear, wide
from tt_jax.settings import sizes


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
        return run([self.conv_in, *self.levels, self.middle, self.head], x, cache)


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
        return run([self.conv_in, self.middle, *self.levels, self.head], x, cache)


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
