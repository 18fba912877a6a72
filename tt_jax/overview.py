"""What is kept of a video whose frames go to files: a few numbers a chunk, and a few pictures."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tt_jax.models.configs import FPS
from tt_jax.scenes import Change
from tt_jax.video import Chunk, Video, VideoState

COLUMNS = 9  # chunks and frames that a picture of a video shows
WIDEST = 320  # pixels of a kept frame's shorter side, at most twice as many
NUMBERS = ("severity", "accepted_severity", "threshold", "triggered", "kept_fraction")


@dataclasses.dataclass(frozen=True, eq=False)
class Overview:
    """A video without its frames: what records and pictures need.

    Attributes:
        length: frames of the video.
        size: height and width of a frame.
        numbers: what TokenTrim saw and did, by the names of `Rollout`'s fields, NaN for what has no
            value; "dropped" is the share of the tokens that an intervention dropped.
        maps: for each sample, by chunk, its drift and its pruned share on the token grid; of the
            chunks that `columns` chooses.
        stills: for each sample, by frame, that frame made smaller; in the middle of each of those
            chunks, and evenly over the video.
        starts: the frame at which each chunk begins.
        changes: by chunk, each prompt but the first.
        state: continue from here.
        files: of each sample, the video.
        fps: frames a second.
    """

    length: int
    size: tuple[int, int]
    numbers: Mapping[str, Float[np.ndarray, "b chunks"] | Bool[np.ndarray, "b chunks"]]
    maps: Sequence[Mapping[int, tuple[np.ndarray, np.ndarray]]]
    stills: Sequence[Mapping[int, UInt8[np.ndarray, "h w 3"]]]
    starts: tuple[int, ...]
    changes: Mapping[int, Change]
    state: VideoState
    files: tuple[Path, ...] = ()
    fps: int = FPS

    def __repr__(self) -> str:
        height, width = self.size
        return (
            f"Overview({self.length} frames of {width}x{height}, {self.length / self.fps:.4g} s, "
            f"{len(self.starts)} chunks{''.join(f', {file}' for file in self.files)})"
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """The frame at which each chunk ends; its start, where none of its frames is shown."""
        return (*self.starts[1:], max(self.starts[-1], self.length))

    def middle(self, chunk: int) -> int:
        """The frame that stands for a chunk."""
        return _middle(self.starts[chunk], self.ends[chunk], self.length)


class Observer:
    """Looks at the chunks of a video as they come. What it holds is a pytree of arrays, and grows
    by a few numbers a chunk.

    Args:
        length: frames of the whole video.
        chunks: of it; left out, the first one that comes says it.
        held: what another one, of the same video, held.
        like: the overview of another run beside which this one will be shown: chunks are chosen by
            its interventions.
    """

    def __init__(
        self,
        length: int,
        chunks: int = 0,
        held: dict[str, Any] | None = None,
        like: "Overview | None" = None,
    ) -> None:
        self.length, self.chunks, self.like = length, chunks, like
        self.held: dict[str, Any] = held or {
            "shown": 0, "starts": [], "numbers": {}, "maps": [], "stills": [], "changes": {}
        }  # fmt: skip

    def add(self, chunk: Chunk) -> None:
        """Takes what is needed of a chunk.

        Args:
            chunk: the next one.
        """
        if chunk.change is not None:
            change = chunk.change._replace(prompt=None)  # the words are enough, and small
            self.held["changes"][len(self.held["starts"])] = change
        self.chunks = chunk.total
        self.look(chunk.start, chunk.frames, chunk.rollout.numbers())

    def look(
        self,
        start: int,
        frames: UInt8[np.ndarray, "b t h w 3"],
        numbers: Mapping[str, np.ndarray],
    ) -> None:
        """Takes what is needed of the next frames.

        Args:
            start: of the chunk.
            frames: what is new to see.
            numbers: of this chunk, `[B, 1, ...]`.
        """
        held, batch, number = self.held, len(frames), len(self.held["starts"])
        if not number:
            held["maps"], held["stills"] = ([{} for _ in range(batch)] for _ in range(2))
        first, end = held["shown"], held["shown"] + frames.shape[1]
        held["starts"].append(start)
        held["shown"] = end
        dropped = (numbers["pruned"] > 0).mean(axis=(2, 3))
        row = {name: np.asarray(numbers[name]) for name in NUMBERS} | {"dropped": dropped}
        past = held["numbers"] or {name: value[:, :0] for name, value in row.items()}
        held["numbers"] = {
            name: np.concatenate([past[name], value], axis=1) for name, value in row.items()
        }
        middle = _middle(start, max(start, end), self.length)
        for sample in range(batch):
            maps, stills = held["maps"][sample], held["stills"][sample]
            maps[number] = numbers["drift"][sample, 0], numbers["pruned"][sample, 0]
            for frame in {middle, *spaced(self.length)}:
                if first <= frame < end:
                    stills[frame] = smaller(frames[sample, frame - first])
            self._forget(sample)

    def _forget(self, sample: int) -> None:
        """Lets go of the chunks that no picture will show."""
        maps, stills = self.held["maps"][sample], self.held["stills"][sample]
        numbers = self.held["numbers"] if self.like is None else self.like.numbers
        triggered = numbers["triggered"][sample]
        shown = columns(np.pad(triggered, (0, self.chunks - len(triggered))))
        starts = [*self.held["starts"], max(self.held["shown"], self.held["starts"][-1])]
        for chunk in maps.keys() - set(shown):
            del maps[chunk]
        frames = {_middle(starts[c], starts[c + 1], self.length) for c in maps}
        for frame in stills.keys() - frames - set(spaced(self.length)):
            del stills[frame]

    def overview(self, state: VideoState, files: Sequence[Path] = ()) -> Overview:
        """What was seen, when all chunks were.

        Args:
            state: of the last chunk.
            files: with the frames.

        Returns:
            The overview.
        """
        held = self.held
        height, width = state.surplus.shape[2:4]
        return Overview(
            held["shown"], (height, width), held["numbers"], held["maps"], held["stills"],
            tuple(held["starts"]), held["changes"], state, tuple(files),
        )  # fmt: skip


def overview(video: Video | Overview, like: Overview | None = None) -> Overview:
    """The overview of a video.

    Args:
        video: which may be one.
        like: as in `Observer`.

    Returns:
        Its overview.
    """
    if isinstance(video, Overview):
        return video
    observer = Observer(video.frames.shape[1], len(video.starts), like=like)
    numbers, first = video.rollout.numbers(), 0
    for chunk, (start, end) in enumerate(zip(video.starts, video.ends, strict=True)):
        own = {name: value[:, chunk : chunk + 1] for name, value in numbers.items()}
        observer.look(start, video.frames[:, first:end], own)
        first = end
    held = observer.held
    return Overview(
        video.frames.shape[1], video.frames.shape[2:4], held["numbers"], held["maps"],
        held["stills"], video.starts, video.changes, video.state, fps=video.fps,
    )  # fmt: skip


def columns(triggered: Bool[np.ndarray, " chunks"]) -> list[int]:
    """Chooses up to 9 chunks to show.

    Args:
        triggered: the abnormal chunks.

    Returns:
        First, last and evenly between, moved to near interventions.
    """
    count = len(triggered)
    if count <= COLUMNS:
        return list(range(count))
    even = np.linspace(0, count - 1, COLUMNS)
    reach = even[1] / 2
    chosen = []
    for place in even:
        near = [c for c in np.flatnonzero(triggered) if abs(c - place) < reach]
        inner = 0 < place < count - 1
        chosen.append(min(near, key=lambda c: abs(c - place)) if near and inner else round(place))
    return [int(chunk) for chunk in chosen]


def spaced(length: int) -> list[int]:
    """Up to 9 frames, evenly over a video.

    Args:
        length: frames of the video.

    Returns:
        Their numbers, the first and the last one's among them.
    """
    return sorted({int(frame) for frame in np.linspace(0, length - 1, COLUMNS).round()})


def smaller(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A frame for a picture of many: means of squares of pixels.

    Args:
        frame: of any size.

    Returns:
        The frame, by a whole factor smaller; itself where it is small enough.
    """
    side = max(1, min(frame.shape[:2]) // WIDEST)
    height, width = (length // side for length in frame.shape[:2])
    if side == 1:
        return frame.copy()  # not all of them with it
    squares = frame[: height * side, : width * side].reshape(height, side, width, side, 3)
    return squares.mean((1, 3)).round().astype(np.uint8)


def _middle(start: int, end: int, length: int) -> int:
    # None of a short continuation's own frames is shown.
    return min((start + end) // 2, length - 1)
