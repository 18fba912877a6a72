"""What TokenTrim costs a chunk of the embedded model: off, never abnormal, abnormal every time.

All arms make the same number of chunks from a state past warm-up, so that a forced arm intervenes
in every chunk; they take turns, so that a busy machine slows all of them. Ratios are to "off",
within each repetition. A plain chunk is five passes: four steps and the context's.
"""

import argparse
from collections.abc import Callable

import jax

import tt_jax
from benchmarks._embedded import PROMPT, grid_of
from benchmarks._timing import interleaved, ratios, spread

WARM = 6  # chunks: the buffer is full, and the statistics are beyond warm-up
ALWAYS, NEVER = -1e9, 1e9  # lambda
ARMS = {
    "off": tt_jax.TokenTrim.off(),
    "never abnormal": tt_jax.TokenTrim(lam=NEVER),
    "never abnormal, `first_step`": tt_jax.TokenTrim(lam=NEVER, when="first_step"),
    "every chunk, `final`": tt_jax.TokenTrim(lam=ALWAYS),
    "every chunk, `first_step`": tt_jax.TokenTrim(lam=ALWAYS, when="first_step"),
}
PASSES = {"every chunk, `final`": "9/5", "every chunk, `first_step`": "6/5"}


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks interventions", description=__doc__)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(argv)

    pipe = tt_jax.load("shapes")
    grid = grid_of(pipe)
    text, key = pipe.encode_prompt(PROMPT), jax.random.key(0)
    counts = {}

    def arm(name: str, trim: tt_jax.TokenTrim) -> Callable[[], jax.Array]:
        settings = {"grid": grid, "strategy": pipe.strategy(), "trim": trim}
        state = tt_jax.rollout(pipe.dit, text, key, chunks=WARM, **settings).state

        def run() -> jax.Array:
            out = tt_jax.rollout(
                pipe.dit, text, key, chunks=options.chunks, state=state, **settings
            )
            counts[name] = int(out.triggered.sum()) if trim.retries else 0
            return out.latents

        return run

    seconds = interleaved({name: arm(name, trim) for name, trim in ARMS.items()}, options.repeats)
    print(f"{options.chunks} chunks, {options.repeats} repetitions: median (lowest to highest)")
    print("| TokenTrim | ms a chunk | relative to off | by passes | interventions |")
    print("|---|---|---|---|---|")
    for name, values in seconds.items():
        each = spread([1e3 * value / options.chunks for value in values], 1)
        relative = spread(ratios(values, seconds["off"]), 3)
        print(f"| {name} | {each} | {relative} | {PASSES.get(name, '1')} | {counts[name]} |")
