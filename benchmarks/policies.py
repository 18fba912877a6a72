"""What a chunk of the embedded model takes under each cache policy, relative to a plain window.

Each arm makes the same number of chunks from a state whose buffer is full, without TokenTrim; they
take turns, so that a busy machine slows all of them. Ratios are to "window", within each
repetition. Sizes are those that `--cache NAME` takes where no others are given.
"""

import argparse
from collections.abc import Callable

import jax

import tt_jax
from benchmarks._embedded import PROMPT, grid_of
from benchmarks._timing import interleaved, ratios, spread
from tt_jax.cache.named import NAMES, parse

WARM = 8  # chunks, after which every buffer is full


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks policies", description=__doc__)
    parser.add_argument("--chunks", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(argv)

    pipe = tt_jax.load("shapes-young")
    grid = grid_of(pipe)
    text, key = pipe.encode_prompt(PROMPT), jax.random.key(0)

    def arm(name: str) -> Callable[[], jax.Array]:
        strategy = pipe.strategy(cache=parse(name, pipe.config.rollout.window))
        settings = {"grid": grid, "strategy": strategy, "trim": tt_jax.TokenTrim.off()}
        state = tt_jax.rollout(pipe.dit, text, key, chunks=WARM, **settings).state
        return lambda: (
            tt_jax.rollout(
                pipe.dit, text, key, chunks=options.chunks, state=state, **settings
            ).latents
        )

    seconds = interleaved({name: arm(name) for name in NAMES}, options.repeats)
    print(f"{options.chunks} chunks, {options.repeats} repetitions: median (lowest to highest)")
    print("| `--cache` | ms a chunk | relative to `window` |")
    print("|---|---|---|")
    for name, values in seconds.items():
        each = spread([1e3 * value / options.chunks for value in values], 0)
        print(f"| `{name}` | {each} | {spread(ratios(values, seconds['window']), 2)} |")
