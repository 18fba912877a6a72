"""What a chunk takes when somebody looks at each one for half as long as the device needs for it.

    python -m benchmarks consumer

The device makes the next chunk while the last one's frames are looked at: the slow consumer, which
sleeps, costs nothing. Seconds from chunk to chunk, median, lowest and highest; the first two aren't
counted.
"""

import argparse
import itertools
import statistics
import time

import tt_jax
from benchmarks._timing import spread

PROMPT = "a large red circle moving right slowly on a white background"


def intervals(pipe: tt_jax.Pipeline, chunks: int, pause: float, size: int) -> list[float]:
    """Seconds from chunk to chunk of a stream whose consumer sleeps over each."""
    times = []
    for _ in pipe.stream(PROMPT, seconds=(12 * chunks - 3) / 16, size=(size, size)):
        time.sleep(pause)
        times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times[1:])]


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks consumer", description=__doc__)
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--size", type=int, default=128, help="of the video")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(argv)
    pipe = tt_jax.load("shapes")
    alone = statistics.median(intervals(pipe, 6, 0.0, options.size))
    found: dict[str, list[float]] = {"fast": [], "slow": []}
    for _ in range(options.rounds):
        for name, pause in (("fast", 0.0), ("slow", alone / 2)):
            found[name] += intervals(pipe, options.chunks, pause, options.size)
    print("| consumer | sleeps, s | a chunk, s | of the fast one's |")
    print("|---|---|---|---|")
    fast = statistics.median(found["fast"])
    for name, pause in (("fast", 0.0), ("slow", alone / 2)):
        ratio = statistics.median(found[name]) / fast
        print(f"| {name} | {pause:.3f} | {spread(found[name], 3)} | {ratio:.2f} |")
