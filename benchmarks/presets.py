"""Run time of every preset relative to its plain host, beside what the paper reports.

All presets make the same videos of the embedded model, latents only, in one process; repetitions
are interleaved, so that a busy machine slows all of them. The ratio is taken within each
repetition; median, lowest and highest are given.
"""

import argparse
import time

import jax

import tt_jax
from benchmarks._embedded import PROMPT, grid_of
from benchmarks._timing import ratios, spread
from tt_jax.strategies.presets import NAMES, preset

PAPER = {"rolling-forcing+tokentrim": "1.08", "rolling-forcing+flowmo": "2.18"}


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks presets", description=__doc__)
    parser.add_argument("--chunks", type=int, default=41, help="of 12 frames; 41 are 30 seconds")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)

    pipe = tt_jax.load("shapes")
    text = pipe.encode_prompt(PROMPT)
    grid = grid_of(pipe)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    triggers = dict.fromkeys(NAMES, 0)

    def once(name: str, seed: int) -> float:
        strategy, trim = preset(name, pipe.config.rollout)
        started = time.perf_counter()
        out = tt_jax.rollout(
            pipe.dit, text, jax.random.key(seed), chunks=options.chunks, grid=grid,
            strategy=strategy, trim=trim,
        )  # fmt: skip
        jax.block_until_ready(out.latents)
        triggers[name] += int(out.triggered.sum()) if trim.retries else 0
        return time.perf_counter() - started

    for name in NAMES:
        once(name, 0)  # compiles
    triggers = dict.fromkeys(NAMES, 0)
    for repeat in range(options.repeats):
        for name in NAMES:
            seconds[name].append(once(name, 1 + repeat))

    print(f"{options.chunks} chunks, {options.repeats} repetitions")
    print("| preset | seconds | relative to its host | paper | interventions a video |")
    print("|---|---|---|---|---|")
    for name in NAMES:
        host = seconds[name.split("+")[0]]
        relative = ratios(seconds[name], host)
        print(
            f"| {name} | {spread(seconds[name], 2)} | {spread(relative, 2)} | "
            f"{PAPER.get(name, '')} | {triggers[name] / options.repeats:.1f} |"
        )
