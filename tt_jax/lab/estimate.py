"""How long a run will take, from the speed of its first chunks on this machine."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tt_jax.evaluate.measures import measure
from tt_jax.lab.make import chunk_count, chunks
from tt_jax.lab.spec import Cell
from tt_jax.models.configs import FPS
from tt_jax.pipeline import Pipeline
from tt_jax.shapes import checker

TRIED = 5  # chunks; the fewest of a video that can be measured
# The share of a batch's chunks that an arm which intervenes makes twice: a guess.
REMADE = 0.3


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds of wall time.

    Attributes:
        compiling: the programs of a system.
        chunk: a chunk of a whole batch.
        measuring: a second of one video.
    """

    compiling: float
    chunk: float
    measuring: float


def try_out(cell: Cell, pipe: Pipeline) -> Speed:
    """The speed of a cell's first chunks.

    Args:
        cell: what is made.
        pipe: its model.

    Returns:
        Seconds of each kind of work.

    Raises:
        NonFiniteError: a chunk isn't finite.
    """
    waits, made = [], []
    started = time.perf_counter()
    for chunk in itertools.islice(chunks(cell, pipe), TRIED):
        waits.append(time.perf_counter() - started - sum(waits))
        made.append(chunk.frames[0])
    video = np.concatenate(made)
    started = time.perf_counter()
    measure(video, FPS)
    if cell.prompts[0].regime:
        checker.measure(video)
    measuring = (time.perf_counter() - started) * FPS / len(video)
    later = float(np.median(waits[1:]))
    return Speed(max(0.0, waits[0] - later), later, measuring)


def system(cell: Cell) -> tuple[Any, ...]:
    """What decides on a cell's speed: cells that share it differ in TokenTrim and length alone."""
    stress = cell.stress
    return stress.model, stress.dtype, stress.window, cell.host, cell.arm.cache, len(cell.prompts)


def hours(cells: Sequence[Cell], pipe_of: Callable[[Cell], Pipeline]) -> float:
    """Estimated hours of wall time for the cells; tries every system out, so it takes minutes.

    Args:
        cells: what is to be made.
        pipe_of: loads a cell's model.

    Returns:
        Hours.
    """
    firsts = {system(cell): cell for cell in reversed(cells)}
    speeds = {key: try_out(cell, pipe_of(cell)) for key, cell in firsts.items()}
    configs = {key: pipe_of(cell).config for key, cell in firsts.items()}
    # Lambda is data, all else of an arm is compiled.
    programs = {
        (system(cell), dataclasses.replace(cell.arm.trim, lam=0.0)): speeds[system(cell)].compiling
        for cell in cells
    }
    total = sum(programs.values())
    for cell in cells:
        speed = speeds[system(cell)]
        repeats = 1 + REMADE * (cell.arm.trim.retries > 0)
        total += repeats * speed.chunk * chunk_count(cell, configs[system(cell)])
        total += speed.measuring * cell.seconds * len(cell.prompts)
    return total / 3600
