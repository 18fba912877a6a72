"""What weights of 8 bits change on a TPU v5e, by its compiler: memory, and a block's cycles.

    python -m benchmarks quantize_tpu      needs libtpu (the extra `tpu`), but no TPU

Wan-1.3B at 832x480, window 21, a rollout of forty chunks. Cycles are those of one denoising pass of
one block, the attention kernel itself not counted, which the compiler doesn't estimate and which is
the same in both.
"""

import argparse
import re
import time
from collections import Counter

import jax
import jax.numpy as jnp

import tt_jax
from benchmarks import tpu
from tt_jax.checkpoint import abstract
from tt_jax.models.dit import DiTConfig
from tt_jax.planning import compiler
from tt_jax.planning.machines import MACHINES
from tt_jax.strategies.self_forcing import SelfForcing

# Of a quantised transformer a block is in one of two branches: the first and the last in ENDS.
INNER, ENDS = "branch_0_fun", "branch_1_fun"
PRODUCTS = "products of linear layers"


def compiled(config: DiTConfig) -> jax.stages.Compiled:
    """The rollout's program."""
    mesh = compiler.mesh_of(MACHINES["v5e-1"], config.heads)
    text = jax.ShapeDtypeStruct((1, config.text_len, config.text_dim), jnp.bfloat16)
    dit = abstract("dit", config, jnp.bfloat16)
    strategy = SelfForcing(window=21)
    lowered = tt_jax.lower(dit, text, chunks=40, grid=tpu.GRID, strategy=strategy, mesh=mesh)
    with jax.set_mesh(mesh):
        return lowered.compile()


def block(program: str, quantised: bool) -> Counter[str]:
    """Millions of cycles of one block that isn't at the ends, by what they are for."""
    spent: Counter[str] = Counter()
    for place, name, cycles in tpu.operations(program):
        inside = place == f"{tpu.STEP_LAYER}/C" and quantised
        if place != tpu.STEP_LAYER and not inside:
            continue
        branches = re.findall(r"branch_\d+_fun", name)
        if inside and branches and branches[-1] == ENDS:
            continue
        spent[part(name)] += cycles
    return spent


def part(name: str) -> str:
    """A row of the table."""
    if not any(scope in name for scope in tpu.SCOPES):
        return "slices of stacks, copies"
    return PRODUCTS if "dot_general" in name else "norms, rotation, modulation, scales"


def main(argv: list[str]) -> None:
    """Prints the table, column by column as rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks quantize_tpu", description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    layers = parser.parse_args(argv).layers
    names = (PRODUCTS, "norms, rotation, modulation, scales", "slices of stacks, copies")
    print(f"| weights | arguments, GB | temporaries, GB | {' | '.join(names)} | together |")
    print("|---|---|---|---|---|---|---|")
    for quantize in (None, "int8"):
        started = time.perf_counter()
        program = compiled(DiTConfig(layers=layers, quantize=quantize))
        memory, text = program.memory_analysis(), program.as_text()
        assert memory is not None and text is not None  # a TPU's compiler shows them
        spent = block(text, quantize is not None)
        cells = [memory.argument_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9]
        cells += [spent[name] / 1e6 for name in names] + [spent.total() / 1e6]
        numbers = " | ".join(f"{cell:.2f}" for cell in cells)
        print(f"| {quantize or 'bfloat16'} | {numbers} |", flush=True)
        print(f"compiled in {time.perf_counter() - started:.0f} s")
