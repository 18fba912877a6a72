"""Main memory of a video that is written while it is made, whatever its length.

    python -m benchmarks memory     frames of 832x480 from a stand-in decoder, 1 and 20 minutes, in
                                    segments of 10 seconds with a state each, and in one piece; and
                                    10 and 60 seconds of the embedded model with its decoder

Anonymous memory of a process of its own, the highest of many looks; mapped files don't count. The
highest differs by a few chunks' frames from run to run, so a shorter video is made as often as it
takes for the longer one's length: both are looked at for as long.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import tt_jax
from benchmarks.convert_memory import INTERVAL, anonymous
from tt_jax.cli.main import return_memory
from tt_jax.cli.take import Take
from tt_jax.models.configs import FPS
from tt_jax.overview import Observer
from tt_jax.video import Chunk, VideoState

SIZE = (480, 832)
CHUNK = 12  # frames
CASES = {"segments": (60.0, 1200.0), "one piece": (60.0, 1200.0), "shapes": (10.0, 60.0)}


def stand_in(seconds: float, folder: Path, every: int = 0) -> None:
    """Writes moving waves through what `tt-jax generate` writes with."""
    return_memory()
    length = FPS * round(seconds)
    take = Take(folder, Observer(length), 0, every=FPS * every)
    for chunk in chunks(length):
        take.add(chunk)
        del chunk  # as `tt-jax generate` does
    take.save([folder / "video.mp4"])


def chunks(length: int) -> Iterator[Chunk]:
    """A stream's chunks, of frames that a cheap decoder makes."""
    waves = 127 * (1 + np.sin(np.arange(2 * SIZE[1]) / 60))  # quickly encoded
    wide = np.broadcast_to(waves[:, None], (SIZE[0], 2 * SIZE[1], 3)).astype(np.uint8)
    maps = np.zeros((1, 1, 30, 52), np.float32)
    numbers = {
        name: np.zeros((1, 1), np.float32)
        for name in ("severity", "accepted_severity", "threshold", "kept_fraction")
    } | {"triggered": np.zeros((1, 1), bool), "drift": maps, "pruned": maps}
    rollout: Any = SimpleNamespace(numbers=lambda: numbers)
    context: Any = np.zeros(1 << 20, np.float32)
    state = VideoState(context, [], np.zeros((1, 0, *SIZE, 3), np.uint8))
    total = -(-length // CHUNK)
    for number in range(total):
        start = number * CHUNK
        frames = np.stack(
            [wide[:, at % SIZE[1] : at % SIZE[1] + SIZE[1]] for at in range(start, start + CHUNK)]
        )[None, : length - start]
        chunk = Chunk(number, start, total, frames, rollout, state)
        del frames
        yield chunk
        del chunk


def embedded(seconds: float, folder: Path) -> None:
    """Makes a video of the embedded model."""
    return_memory()
    prompt = "a large red circle moving right slowly on a white background"
    tt_jax.load("shapes").generate(prompt, seconds=seconds, out=folder / "video.mp4")


MAKERS = {"segments": partial(stand_in, every=10), "one piece": stand_in, "shapes": embedded}


def peak(case: str, seconds: float) -> int:
    """Bytes of a process that makes a video."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"from benchmarks.memory import *; MAKERS[{case!r}]({seconds}, Path({folder!r}))"
        process = subprocess.Popen([sys.executable, "-c", code])
        highest, done = 0, threading.Event()
        while process.poll() is None:
            highest = max(highest, anonymous(process.pid))
            done.wait(INTERVAL)
    if process.returncode:
        sys.exit("the run failed.")
    return highest


def main(argv: list[str]) -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--case", choices=CASES, nargs="*", default=list(CASES))
    options = parser.parse_args(argv)
    print("| frames | seconds | peak of main memory | of the shorter | time of a run |")
    print("|---|---|---|---|---|")
    for case in options.case:
        first = None
        for seconds in CASES[case]:
            started = time.perf_counter()
            times = round(CASES[case][-1] / seconds)
            peaks = [peak(case, seconds) for _ in range(times)]
            first = first or max(peaks)
            took = (time.perf_counter() - started) / times
            megabytes = f"{max(peaks) / 1e6:.0f} MB"
            if times > 1:
                megabytes += f" (the lowest of {times} runs: {min(peaks) / 1e6:.0f})"
            print(
                f"| {case} | {seconds:g} | {megabytes} | {max(peaks) / first:.3f} | {took:.0f} s |",
                flush=True,
            )
