"""TAEHV, a tiny autoencoder for the latents of Wan's VAE (madebyollin/taehv).

It stands in for the VAE where decoding must be fast: two-dimensional convolutions, and a memory of
one frame in each `MemBlock`. Frames fall where Wan's do: the first latent frame is one frame, each
later one `temporal_stride`.

Axes: B batch, T frame, H height, W width, C channel; t, h, w those of the latents.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from tt_jax.nn.layers import Linear, to_rank, wide
from tt_jax.settings import sizes, whole

COLOURS = 3


@dataclasses.dataclass(frozen=True)
class TinyVAEConfig:
    """Sizes of a tiny autoencoder; the defaults are `taew2_1`, for the latents of Wan2.1.

    Args:
        latent_channels: number of channels C of the latents.
        widths: of the decoder's levels, each at twice the resolution of the one before; the last
            is the encoder's width too.
        blocks: memory blocks of a level.
        temporal_upsample: whether the decoder doubles time, for each step between levels.
        patch: pixels along the side of a square that the network sees as channels of one.

    Raises:
        ValueError: sizes that no autoencoder has.
    """

    latent_channels: int = 16
    widths: tuple[int, ...] = (256, 128, 64, 64)
    blocks: int = 3
    temporal_upsample: tuple[bool, ...] = (False, True, True)
    patch: int = 1

    def __post_init__(self) -> None:
        sizes(self)
        for width in self.widths:
            whole("a level's width", width, 1)
        if len(self.temporal_upsample) != len(self.widths) - 1:
            raise ValueError("temporal_upsample needs one entry less than widths.")

    @property
    def spatial_stride(self) -> int:
        """Pixels along one side of a latent position."""
        return self.patch * 2 ** len(self.temporal_upsample)

    @property
    def temporal_stride(self) -> int:
        """Frames of one latent frame, but for the first, which is one frame."""
        return 2 ** sum(self.temporal_upsample)

    @classmethod
    def wan2_1(cls) -> "TinyVAEConfig":
        """`taew2_1`, for Wan2.1 and the 14B models of Wan2.2."""
        return cls()

    @classmethod
    def wan2_2(cls) -> "TinyVAEConfig":
        """`taew2_2`, for Wan2.2's 5B model."""
        return cls(latent_channels=48, patch=2)


Past = tuple[Array, ...]  # the last input `[B, 1, H, W, C]` of each memory block of a level


class Memory(NamedTuple):
    """Where a video stopped: what the memory blocks of each level remember."""

    levels: tuple[Past, ...]


class Conv(nnx.Module):
    """3x3 convolution of each frame, zero-padded by one. kernel `[3, 3, in, out]`, bias `[out]`."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        stride: int = 1,
        bias: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride = stride
        scale = (9 * in_dim) ** -0.5
        kernel = scale * jax.random.truncated_normal(rngs.params(), -2, 2, (3, 3, in_dim, out_dim))
        self.kernel = nnx.Param(kernel.astype(dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros((out_dim,), dtype)) if bias else None)

    def __call__(self, x: Float[Array, "b T h w i"]) -> Float[Array, "b T h2 w2 o"]:
        kernel = self.kernel[...]
        y = jax.lax.conv_general_dilated(
            x.astype(kernel.dtype).reshape(-1, *x.shape[2:]),
            kernel,
            (self.stride, self.stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape(*x.shape[:2], *y.shape[1:])
        return y if self.bias is None else y + to_rank(self.bias[...], y.ndim)


class MemBlock(nnx.Module):
    """Three convolutions of a frame beside the frame before it, around a shortcut."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(2 * dim, dim, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(dim, dim, dtype=dtype, rngs=rngs)
        self.conv3 = Conv(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b T h w c"], last: Float[Array, "b 1 h w c"] | None
    ) -> tuple[Float[Array, "b T h w c"], Float[Array, "b 1 h w c"]]:
        last = jnp.zeros_like(x[:, :1]) if last is None else last
        before = jnp.concatenate([last, x[:, :-1]], axis=1)
        y = jax.nn.relu(self.conv1(jnp.concatenate([x, before], axis=-1)))
        y = self.conv3(jax.nn.relu(self.conv2(y)))
        return jax.nn.relu(y + x), x[:, -1:]


def _through(
    blocks: nnx.List[MemBlock], x: Float[Array, "b T h w c"], past: Past | None
) -> tuple[Float[Array, "b T h w c"], Past]:
    """One block after another, each with its own last input."""
    after = []
    for block, last in zip(blocks, past or [None] * len(blocks), strict=True):
        x, last = block(x, last)
        after.append(last)
    return x, tuple(after)


class Down(nnx.Module):
    """A level of the encoder: time is halved if `temporal`, then space; then memory blocks."""

    def __init__(
        self, dim: int, blocks: int, temporal: bool, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.stride = 1 + temporal
        self.pool = Linear(self.stride * dim, dim, bias=False, dtype=dtype, rngs=rngs)
        self.conv = Conv(dim, dim, stride=2, bias=False, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(MemBlock(dim, dtype=dtype, rngs=rngs) for _ in range(blocks))

    def __call__(
        self, x: Float[Array, "b T h w c"], past: Past | None
    ) -> tuple[Float[Array, "b T2 h//2 w//2 c"], Past]:
        b, t, h, w, c = x.shape
        x = jnp.moveaxis(x.reshape(b, t // self.stride, self.stride, h, w, c), 2, 4)
        x = self.pool(x.reshape(*x.shape[:4], self.stride * c))
        return _through(self.blocks, self.conv(x), past)


class Up(nnx.Module):
    """A level of the decoder: memory blocks, then time is doubled if `temporal`, and space."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        blocks: int,
        temporal: bool,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride = 1 + temporal
        self.blocks = nnx.List(MemBlock(in_dim, dtype=dtype, rngs=rngs) for _ in range(blocks))
        self.grow = Linear(in_dim, self.stride * in_dim, bias=False, dtype=dtype, rngs=rngs)
        self.conv = Conv(in_dim, out_dim, bias=False, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b T h w i"], past: Past | None
    ) -> tuple[Float[Array, "b T2 2*h 2*w o"], Past]:
        x, past = _through(self.blocks, x, past)
        # The original repeats the pixels first; a product of each of them alone gives the same.
        x = self.grow(x)
        b, t, h, w, c = x.shape
        x = jnp.moveaxis(x.reshape(b, t, h, w, self.stride, c // self.stride), 4, 2)
        x = x.reshape(b, t * self.stride, h, w, c // self.stride)
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)), past


def _levels(
    levels: nnx.List, x: Float[Array, "b T h w i"], memory: Memory | None
) -> tuple[Float[Array, "b T2 h2 w2 o"], Memory]:
    """One level after another, each with its part of the memory."""
    after = []
    for level, past in zip(levels, memory.levels if memory else [None] * len(levels), strict=True):
        with jax.named_scope(type(level).__name__):
            x, past = level(x, past)
        after.append(past)
    return x, Memory(tuple(after))


class Encoder(nnx.Module):
    """Patches of a video in [0, 1], `[B, T, H, W, 3 patch^2]`, to latents `[B, t, h, w, C]`."""

    def __init__(self, config: TinyVAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        dim = config.widths[-1]
        self.conv_in = Conv(COLOURS * config.patch**2, dim, dtype=dtype, rngs=rngs)
        self.levels = nnx.List(
            Down(dim, config.blocks, temporal, dtype=dtype, rngs=rngs)
            for temporal in reversed(config.temporal_upsample)
        )
        self.head = Conv(dim, config.latent_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b T h w p"], memory: Memory | None = None
    ) -> tuple[Float[Array, "b t h2 w2 c"], Memory]:
        x = jax.nn.relu(self.conv_in(x))
        x, memory = _levels(self.levels, x, memory)
        return self.head(x), memory


class Decoder(nnx.Module):
    """Latents `[B, t, h, w, C]` to patches of a video, `[B, T, H, W, 3 patch^2]`, not clamped."""

    def __init__(self, config: TinyVAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        widths = config.widths
        self.conv_in = Conv(config.latent_channels, widths[0], dtype=dtype, rngs=rngs)
        self.levels = nnx.List(
            Up(before, after, config.blocks, temporal, dtype=dtype, rngs=rngs)
            for before, after, temporal in zip(
                widths[:-1], widths[1:], config.temporal_upsample, strict=True
            )
        )
        self.head = Conv(widths[-1], COLOURS * config.patch**2, dtype=dtype, rngs=rngs)

    def __call__(
        self, latents: Float[Array, "b t h w c"], memory: Memory | None = None
    ) -> tuple[Float[Array, "b T h2 w2 p"], Memory]:
        x = jax.nn.relu(self.conv_in(3 * jnp.tanh(wide(latents) / 3)))
        x, memory = _levels(self.levels, x, memory)
        return self.head(jax.nn.relu(x)), memory


def _steps(step: Callable, x: Float[Array, "b T h w i"], size: int) -> Float[Array, "b T2 h2 w2 o"]:
    """`step(x, memory)` on `size` frames after the other: the memory of one step."""
    b, t, *rest = x.shape
    groups = jnp.moveaxis(x.reshape(b, t // size, size, *rest), 1, 0)
    start = jax.eval_shape(lambda part: step(part, None)[1], groups[0])
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)

    def body(memory: Memory, part: Array) -> tuple[Memory, Array]:
        y, memory = step(part, memory)
        return memory, y

    y = jnp.moveaxis(jax.lax.scan(body, start, groups)[1], 0, 1)
    return y.reshape(b, -1, *y.shape[3:])


def _to_patches(video: Float[Array, "b T h w c"], patch: int) -> Float[Array, "b T h2 w2 p"]:
    """Squares of pixels as channels, (colour, row, column)."""
    b, t, h, w, c = video.shape
    x = video.reshape(b, t, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 2, 4, 6, 3, 5).reshape(b, t, h // patch, w // patch, -1)


def _from_patches(x: Float[Array, "b T h w p"], patch: int) -> Float[Array, "b T h2 w2 c"]:
    """The inverse of `_to_patches`."""
    b, t, h, w, p = x.shape
    x = x.reshape(b, t, h, w, p // patch**2, patch, patch).transpose(0, 1, 2, 5, 3, 6, 4)
    return x.reshape(b, t, h * patch, w * patch, -1)


class TinyVAE(nnx.Module):
    """Encoder and decoder, to be used like `VAE`: video is in [-1, 1], latents are normalised.

    T frames and t latent frames: t = 1 + (T - 1) // temporal_stride. It computes in the dtype of
    its parameters; that is the video's dtype, latents are at least float32.
    """

    def __init__(
        self, config: TinyVAEConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.config = config
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(config, dtype=dtype, rngs=rngs)

    def _video(self, patches: Float[Array, "b T h w p"]) -> Float[Array, "b T h2 w2 3"]:
        return 2 * jnp.clip(_from_patches(patches, self.config.patch), 0, 1) - 1

    def encode(self, video: Float[Array, "b T H W 3"]) -> Float[Array, "b t h w c"]:
        """Latents of a video, step by step in time.

        Like the original, it repeats the last frame until all latent frames have as many, and each
        latent frame sees those that it stands for and up to `temporal_stride - 1` more.

        Args:
            video: `[B, T, H, W, 3]` in [-1, 1]; sides are multiples of `config.spatial_stride`.

        Returns:
            The latents `[B, t, h, w, C]`; at least float32.

        Raises:
            ValueError: a side isn't a multiple.
        """
        side, stride = self.config.spatial_stride, self.config.temporal_stride
        frames, height, width = video.shape[1:4]
        if height % side or width % side:
            raise ValueError(
                f"a video of {height}x{width} needs sides that are multiples of {side}."
            )
        x = jnp.concatenate([video, *[video[:, -1:]] * (-frames % stride)], axis=1)
        x = _to_patches((x + 1) / 2, self.config.patch)
        return wide(_steps(self.encoder, x, stride))

    def decode(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b T H W 3"]:
        """The video of latents, step by step in time.

        Args:
            latents: `[B, t, h, w, C]`, normalised.

        Returns:
            `[B, T, H, W, 3]`, clamped to [-1, 1], in the dtype of the parameters.
        """
        patches = _steps(self.decoder, latents, 1)
        return self._video(patches[:, self.config.temporal_stride - 1 :])

    def decode_stream(
        self, cache: Memory | None, latents: Float[Array, "b n h w c"]
    ) -> tuple[Float[Array, "b N H W 3"], Memory]:
        """The next frames of a video, all at once.

        Args:
            cache: what the call before returned; None at the start of a video.
            latents: `[B, n, h, w, C]`, normalised.

        Returns:
            The frames `[B, N, H, W, 3]`, clamped to [-1, 1], and the cache for those after them. At
            the start N = 1 + stride (n - 1), later stride n, of `config.temporal_stride`.
        """
        patches, memory = self.decoder(latents, cache)
        if cache is None:
            patches = patches[:, self.config.temporal_stride - 1 :]
        return self._video(patches), memory
