"""The files of one run while it is made: closed segments of video, and states to go on from."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tt_jax.files import atomic
from tt_jax.media.write import Writer, join, partial
from tt_jax.overview import Observer, Overview
from tt_jax.saved import load_state, save_state
from tt_jax.video import Chunk, VideoState

KEPT = 2  # states


class Take:
    """One run: its frames go to files, an overview stays.

    An encoder's state can't be kept: with `every`, a segment ends where a state is saved, whether
    or not anybody will go on from it, so that the video of an interrupted run is that of one that
    wasn't.

    Args:
        folder: for the files, this run's alone.
        observer: of the run.
        lag: chunks that the strategy makes again when it goes on.
        every: frames between two states; 0 for none.
        segment: the first to write.
        lossless: also keep the frames bit for bit, to be read again.
    """

    def __init__(
        self,
        folder: Path,
        observer: Observer,
        lag: int,
        *,
        every: int = 0,
        segment: int = 0,
        lossless: bool = False,
    ) -> None:
        self.folder, self.observer, self.lag = folder, observer, lag
        self.every, self.lossless = every, lossless
        self.segment = segment
        self.state: VideoState | None = None
        self._writers: list[Writer] = []
        self._spools: list[Writer] = []
        folder.mkdir(exist_ok=True)

    @property
    def shown(self) -> int:
        """Frames so far."""
        return self.observer.held["shown"]

    @property
    def saved(self) -> bool:
        """Whether there is a state to go on from."""
        return bool(_states(self.folder))

    def add(self, chunk: Chunk) -> None:
        """Writes a chunk.

        Args:
            chunk: the next one.

        Raises:
            OSError: there is no room, say.
        """
        if not self._writers:
            samples = range(len(chunk.frames))
            self._writers = [Writer(self._file(self.segment, i)) for i in samples]
        if self.lossless and not self._spools:
            samples = range(len(chunk.frames))
            self._spools = [Writer(self.spool(i), lossless=True) for i in samples]
        for writers in (self._writers, self._spools):
            for writer, frames in zip(writers, chunk.frames, strict=bool(writers)):
                writer.add(frames)
        before = self.shown
        self.observer.add(chunk)
        if chunk.number + 1 == chunk.total:  # not earlier: it is a whole context
            self.state = chunk.state
        goes_on = chunk.number + 1 + self.lag < chunk.total
        if goes_on and self.every and self.shown // self.every > before // self.every:
            self._close()
            self._save(chunk)

    def spool(self, sample: int) -> Path:
        """The file of a sample's frames, bit for bit."""
        return self.folder / f"frames-{sample}.mkv"

    def close(self) -> None:
        """Makes the files whole that are being written."""
        self._close()
        for writer in self._spools:
            writer.close()

    def save(self, paths: Sequence[Path]) -> Overview:
        """Joins the segments to the videos of all samples.

        Args:
            paths: of each.

        Returns:
            What was kept of the run.
        """
        self.close()
        for sample, path in enumerate(paths):
            with atomic(path) as aside:
                join([self._file(i, sample) for i in range(self.segment)], aside)
        assert self.state is not None  # a video has a chunk
        return self.observer.overview(self.state, paths)

    def keep(self, paths: Sequence[Path]) -> list[Path]:
        """Joins what there is, when there won't be more.

        Args:
            paths: of the whole videos.

        Returns:
            Where it is; nothing where there is nothing, or no room.
        """
        kept = []
        with suppress(OSError):
            self.close()
        for sample, path in enumerate(paths):
            files = [self._file(i, sample) for i in range(self.segment)]
            files = [file for file in files if file.exists()]
            with suppress(OSError, ValueError):
                if files:
                    with atomic(partial(path)) as aside:
                        join(files, aside)
                    kept.append(partial(path))
        return kept

    def _file(self, segment: int, sample: int) -> Path:
        return self.folder / f"segment-{segment:06}-{sample}.mp4"

    def _close(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.close()
        self.segment += bool(writers)

    def _save(self, chunk: Chunk) -> None:
        for file in self.folder.glob(f"segment-{self.segment - 1:06}-*"):
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        held = {"state": chunk.state, "held": self.observer.held, "segment": self.segment}
        save_state(self.folder / f"state-{chunk.number:06}", held)
        for file in _states(self.folder)[:-KEPT]:
            file.unlink()


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*"))


def latest(folder: Path) -> dict[str, Any] | None:
    """What `Take` saved last.

    Args:
        folder: a take's.

    Returns:
        Its "state", what its observer "held", and the number of the next "segment"; None if there
        is nothing whole.
    """
    for file in reversed(_states(folder)):
        with suppress(ValueError, OSError):
            return load_state(file)
    return None
