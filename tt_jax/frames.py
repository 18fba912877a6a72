"""Frames and latents: how many there are, of which size, and the way between them, ahead of who
looks at them."""

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from tt_jax._rollout import Rollout
from tt_jax.models.configs import FPS, ModelConfig
from tt_jax.models.tiny_vae import TinyVAE
from tt_jax.models.vae import VAE, Cache
from tt_jax.nn.layers import wide
from tt_jax.sharding import everywhere

T = TypeVar("T")


def check_size(config: ModelConfig, size: tuple[int, int]) -> None:
    """Looks at the size of a video that a model is to make.

    Args:
        config: of the model.
        size: height and width in pixels.

    Raises:
        ValueError: the model can't make such videos.
    """
    unit = config.vae.spatial_stride * config.dit.patch
    if min(size) < unit or size[0] % unit or size[1] % unit:
        raise ValueError(
            f"a video of {size[1]}x{size[0]} pixels can't be: sides must be multiples of {unit}."
        )


def frame_count(seconds: float) -> int:
    """How many frames a video has.

    Args:
        seconds: its length.

    Returns:
        `round(16 * seconds)`.

    Raises:
        ValueError: that isn't one frame, or no number.
    """
    if not 0 < seconds < float("inf") or round(FPS * seconds) < 1:
        raise ValueError(f"a video needs seconds for at least one frame, not {seconds:g}.")
    return round(FPS * seconds)


def scale(frames: np.ndarray, batch: int, size: tuple[int, int]) -> Float[np.ndarray, "b T H W 3"]:
    """Frames as the VAE takes them.

    Args:
        frames: `[1 or B, T, H, W, 3]`; uint8, or float in [0, 1].
        batch: number of videos that start from them.
        size: their height and width.

    Returns:
        The frames, float32 from -1 to 1.

    Raises:
        ValueError: the frames have another shape or range.
    """
    wanted = f"[frames, {size[0]}, {size[1]}, 3], with or without a batch of {batch}"
    if frames.ndim != 5 or frames.shape[0] not in (1, batch) or not frames.shape[1]:
        raise ValueError(f"initial frames must be {wanted}, not {list(frames.shape)}.")
    if frames.shape[2:] != (*size, 3):
        raise ValueError(f"initial frames must be {wanted}, not {list(frames.shape)}.")
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / np.float32(127.5) - np.float32(1)
    if np.all((frames >= 0) & (frames <= 1)):
        return frames.astype(np.float32) * np.float32(2) - np.float32(1)
    raise ValueError("initial frames must be uint8, or floats between 0 and 1.")


@partial(jax.jit, static_argnums=0)
def encode(
    graph: nnx.GraphDef, params: nnx.State, video: Float[Array | np.ndarray, "b T H W 3"]
) -> Float[Array, "b t h w c"]:
    """Latents of frames by a VAE that is split in two.

    Args:
        graph: of `nnx.split`.
        params: of `nnx.split`.
        video: frames from -1 to 1.

    Returns:
        Latents, float32 (float64 for weights of float64).
    """
    return wide(nnx.merge(graph, params).encode(video))


@partial(jax.jit, static_argnums=0)
def decode(
    graph: nnx.GraphDef, params: nnx.State, cache: Cache, latents: Float[Array, "b t h w c"]
) -> tuple[UInt8[Array, "b T H W 3"], Cache]:
    """The next frames of a video by a VAE that is split in two.

    Args:
        graph: of `nnx.split`.
        params: of `nnx.split`.
        cache: the VAE's after the latent frames before, None at a video's beginning.
        latents: the next latent frames.

    Returns:
        Their frames, and the VAE's cache after them.
    """
    frames, cache = nnx.merge(graph, params).decode_stream(cache, latents)
    frames = jnp.round((wide(frames) + 1) * 127.5).astype(jnp.uint8)
    return everywhere(frames), cache


@jax.jit
def _finite(latents: Float[Array, "b t h w c"]) -> Bool[Array, ""]:
    return everywhere(jnp.isfinite(latents).all())


class Decoder:
    """Decodes the chunks of a stream, one after the other, and waits for nothing.

    Args:
        vae: full or tiny.
        cache: the VAE's after the video that is continued, None for a new one.
        initial: latent frames in front of the first chunk's.
    """

    def __init__(
        self,
        vae: VAE | TinyVAE,
        cache: Cache,
        initial: Float[Array | np.ndarray, "b t h w c"] | None,
    ) -> None:
        self.decode = partial(decode, *nnx.split(vae))
        self.cache, self.initial = cache, initial

    def __call__(
        self, out: Rollout
    ) -> tuple[Rollout, Bool[Array, ""], list[UInt8[Array, "b T H W 3"]], Cache]:
        """The chunk, whether it is finite, its frames, and the VAE's cache after it."""
        latents = out.latents
        if self.initial is not None:
            latents = jnp.concatenate([self.initial, latents], axis=1)
            self.initial = None
        parts = []
        # One latent frame a call: one program whatever their number, and several are no faster.
        for i in range(latents.shape[1]):
            part, self.cache = self.decode(self.cache, latents[:, i : i + 1])
            parts.append(part)
        return out, _finite(out.latents), parts, self.cache


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Lets the device work on the next item while the host looks at one.

    Args:
        items: results of a device, asked for one by one.

    Yields:
        Each of them once the next one has been asked for.
    """
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting
