"""Time per chunk and memory of rollouts of different length, of the embedded model.

Every length is a program of its own, compiled before; the lengths take turns, so that a busy
machine slows all of them. The ratio is to the first length, within each repetition.
"""

import argparse
import statistics

import jax
from flax import nnx

import tt_jax
from benchmarks._embedded import PROMPT, grid_of
from benchmarks._timing import interleaved, ratios, spread
from tt_jax._rollout import _begin, _rollout


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks length", description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="+", default=[10, 40, 160, 640])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)

    pipe = tt_jax.load("shapes")
    grid = grid_of(pipe)
    text = pipe.encode_prompt(PROMPT)
    key, strategy, trim = jax.random.key(0), pipe.strategy(), tt_jax.TokenTrim()
    graph, params = nnx.split(pipe.dit)
    state = _begin(graph, params, text, key, grid, strategy, None)

    def temporary(chunks: int) -> int:
        """Bytes that the program needs beside arguments and results."""
        program = _rollout.lower(
            graph, params, text, chunks, grid, strategy, trim, None, state, False
        )
        memory = program.compile().memory_analysis()
        assert memory is not None  # XLA knows on a CPU, GPU or TPU
        return memory.temp_size_in_bytes

    def run(chunks: int) -> jax.Array:
        return tt_jax.rollout(
            pipe.dit, text, key, chunks=chunks, grid=grid, strategy=strategy, trim=trim
        ).latents

    arms = {str(chunks): lambda chunks=chunks: run(chunks) for chunks in options.chunks}
    seconds = {
        name: [value / int(name) for value in values]
        for name, values in interleaved(arms, options.repeats).items()
    }
    base = seconds[str(options.chunks[0])]
    print(f"{options.repeats} repetitions: median (lowest to highest)")
    print("| chunks | ms a chunk | relative to the first | temporary memory, MB |")
    print("|---|---|---|---|")
    for name, values in seconds.items():
        each = spread([1e3 * value for value in values], 1)
        memory = temporary(int(name)) / 1e6
        print(f"| {name} | {each} | {spread(ratios(values, base), 3)} | {memory:.2f} |")
    middle = [statistics.median(ratios(values, base)) for values in seconds.values()]
    print(f"Largest deviation of a median from the first: {max(abs(m - 1) for m in middle):.1%}")
