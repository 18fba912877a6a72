"""What a pipeline makes: videos, the chunks of a stream, and states to continue from."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from tt_jax._rollout import Rollout
from tt_jax.models.configs import FPS
from tt_jax.models.vae import Cache
from tt_jax.scenes import Change
from tt_jax.strategies.state import State


@dataclasses.dataclass(frozen=True, eq=False)
class VideoState:
    """Where a video stopped: give it to `generate` or `stream` to continue.

    A video made by Rolling Forcing is continued from before its last 4 chunks, which are made again
    with what follows them: the continuation's frames replace those from `Video.starts[-4]` on.

    Attributes:
        rollout: the rollout's own state.
        cache: the VAE's.
        surplus: frames, uint8, that are decoded already but lie beyond the seconds that were asked
            for: the continuation's first.
    """

    rollout: State
    cache: Cache
    surplus: UInt8[np.ndarray, "b t h w 3"]

    def __repr__(self) -> str:
        batch, frames, height, width, _ = self.surplus.shape
        return f"VideoState({_count(batch)} of {width}x{height}, {frames} frames ahead)"


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """One chunk of a stream.

    Attributes:
        number: of the chunk in its rollout, from 0.
        start: the frame, counted from the stream's first, at which its own frames begin (before it,
            in the first chunk: the initial frames, or the surplus of the video that is continued).
        total: chunks of the stream.
        frames: what is new to see, uint8.
        rollout: of this chunk alone.
        state: continue from here.
        change: the prompt that begins with it, and how; None if the one before goes on.
    """

    number: int
    start: int
    total: int
    frames: UInt8[np.ndarray, "b t h w 3"]
    rollout: Rollout
    state: VideoState
    change: Change | None = None

    def __repr__(self) -> str:
        batch, frames, height, width, _ = self.frames.shape
        return (
            f"Chunk(number {self.number}, {self.total} in all; {_count(batch)}, {frames} frames of "
            f"{width}x{height})"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """A generated video: frames, and the rollout behind them.

    Attributes:
        frames: uint8 RGB.
        rollout: latents, and what TokenTrim saw and did in each chunk.
        starts: the frame at which each chunk begins; that of a short continuation may lie behind
            its frames, which were decoded before.
        state: continue from here.
        fps: frames a second.
        changes: by the place of its first chunk in `starts`, each prompt but the first, and how the
            cache was switched.
    """

    frames: UInt8[np.ndarray, "b t h w 3"]
    rollout: Rollout
    starts: tuple[int, ...]
    state: VideoState
    fps: int = FPS
    changes: Mapping[int, Change] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        batch, frames, height, width, _ = self.frames.shape
        return (
            f"Video({_count(batch)}, {frames} frames of {width}x{height}, "
            f"{frames / self.fps:.4g} s, {len(self.starts)} chunks)"
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """The frame at which each chunk ends; its start, where none of its frames is shown."""
        return (*self.starts[1:], max(self.starts[-1], self.frames.shape[1]))

    @classmethod
    def collect(
        cls, chunks: Iterable[Chunk], progress: Callable[[Chunk], None] | None = None
    ) -> "Video":
        """Joins all chunks of a stream.

        Args:
            chunks: what `Pipeline.stream` yields.
            progress: called with each of them.

        Raises:
            ValueError: there is no chunk.
        """
        frames, starts, records = [], [], []
        changes: dict[int, Change] = {}
        state: VideoState | None = None
        for chunk in chunks:
            if progress is not None:
                progress(chunk)
            if chunk.change is not None:
                changes[len(starts)] = chunk.change
            frames.append(chunk.frames)
            starts.append(chunk.start)
            # Without the states: each holds a whole context.
            records.append({k: v for k, v in vars(chunk.rollout).items() if k != "state"})
            state = chunk.state
        if state is None:
            raise ValueError("there is no chunk to make a video of.")
        fields = {
            name: jnp.concatenate([record[name] for record in records], axis=1)
            for name in records[0]
        }
        whole = Rollout(**fields, state=state.rollout)
        return cls(np.concatenate(frames, axis=1), whole, tuple(starts), state, changes=changes)

    def save(self, path: Path | str) -> list[Path]:
        """Writes an mp4 file for each sample, as `media.write.write_video` does.

        Args:
            path: the file's name, as in `sample_paths`.

        Returns:
            The files.

        Raises:
            OSError: one can't be written.
        """
        from tt_jax.media.write import write_video  # here: importing tt_jax stays light

        paths = sample_paths(path, len(self.frames))
        for one, frames in zip(paths, self.frames, strict=True):
            write_video(one, frames, self.fps)
        return paths


def sample_paths(path: Path | str, batch: int) -> list[Path]:
    """Where the video of each sample is written.

    Args:
        path: of the only one.
        batch: how many there are.

    Returns:
        `path`, or for several `video-0.mp4`, `video-1.mp4`.
    """
    path = Path(path)
    return [path] if batch == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(batch)]


def _count(batch: int) -> str:
    return f"{batch} sample" if batch == 1 else f"{batch} samples"
