"""What is said while a run is made: a bar on a terminal, else a line every ten seconds."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tt_jax.cli.console import say
from tt_jax.video import Chunk

EVERY = 10.0  # seconds between two lines


@dataclasses.dataclass
class Tally:
    """What is known of a run while it is made.

    Attributes:
        label: of the run.
        wanted: frames of the whole video.
        fps: its frames a second.
        acts: whether abnormal chunks are made again.
        started: when it began, on the clock of `time.perf_counter`.
        chunks: how many are there.
        total: how many there will be.
        frames: how many are there.
        abnormal: chunks that were, of all samples.
        severity: the latest chunk's, the highest of its samples.
        before: chunks of them that an earlier call made.
        first: seconds until the first chunk was there; till then, programs were compiled.
        first_frames: frames of the first chunk.
        latest: seconds until the latest chunk was there.
    """

    label: str
    wanted: int
    fps: int
    acts: bool
    started: float = dataclasses.field(default_factory=lambda: time.perf_counter())
    chunks: int = 0
    total: int = 0
    frames: int = 0
    abnormal: int = 0
    severity: float = math.nan
    before: int = 0
    # When the first chunk was there, and its frames: until then, programs were compiled.
    first: float = 0.0
    first_frames: int = 0
    latest: float = 0.0

    def add(self, chunk: Chunk) -> None:
        """Counts one more chunk."""
        self.latest = time.perf_counter() - self.started
        self.chunks += 1
        self.total = chunk.total
        self.frames += chunk.frames.shape[1]
        self.abnormal += int(np.asarray(chunk.rollout.triggered).sum())
        self.severity = float(np.asarray(chunk.rollout.severity).max())
        if self.chunks == self.before + 1:
            self.first, self.first_frames = self.latest, self.frames

    def __str__(self) -> str:
        fresh = self.chunks - self.before
        if not fresh:
            return f"compiling, {clock(time.perf_counter() - self.started)}"
        said = [
            f"chunk {self.chunks} of {self.total}",
            f"{self.frames / self.fps:.1f} of {self.wanted / self.fps:.1f} s",
        ]
        if fresh > 1:
            spent = self.latest - self.first
            left = spent / (fresh - 1) * (self.total - self.chunks)
            said.append(f"{(self.frames - self.first_frames) / spent:.1f} frames/s")
            said.append(f"{clock(left)} left")
        if math.isfinite(self.severity) and self.severity > 0:
            said.append(f"severity {self.severity:.3f}")
        said.append(count(self.abnormal, "intervention" if self.acts else "abnormal chunk"))
        return ", ".join(said)


def count(number: int, what: str) -> str:
    """A number of things.

    Args:
        number: how many.
        what: one of them.

    Returns:
        The number and the word, in the plural unless it is one.
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """A time like 1:05 or 2:00:00."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def watch(stream: Iterator[Chunk], tally: Tally) -> Iterator[Chunk]:
    """Says how far a stream is, while somebody takes its chunks.

    Args:
        stream: the chunks of a run that hasn't begun.
        tally: of that run.

    Yields:
        The chunks; none of them is kept.
    """
    console = Console(stderr=True)
    with _bar(console, tally) if console.is_terminal else _lines(tally) as show:
        for chunk in stream:
            tally.add(chunk)
            show()
            yield chunk
            del chunk  # with a whole context


@contextmanager
def _bar(console: Console, tally: Tally) -> Iterator[Callable[[], None]]:
    columns = "{task.description}", "{task.fields[said]}"
    bar = Progress(
        TextColumn(columns[0]), BarColumn(24), TextColumn(columns[1]), TimeElapsedColumn(),
        console=console,
    )  # fmt: skip
    with bar:
        task = bar.add_task(tally.label, total=None, said="compiling")
        yield lambda: bar.update(task, total=tally.total, completed=tally.chunks, said=str(tally))


@contextmanager
def _lines(tally: Tally) -> Iterator[Callable[[], None]]:
    """Says how far a run is, every ten seconds, even while nothing comes of it."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(EVERY):
            say(f"{tally.label}: {tally}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield lambda: None
    finally:
        done.set()
        teller.join()
