"""Where a chunk of Wan-1.3B spends its time on a TPU, by its compiler's own estimates.

    python -m benchmarks tpu                       a v5e; needs libtpu (the extra `tpu`), no TPU
    python -m benchmarks tpu --machine v6e-8       v5e-4, v6e-1 and others of `tt-jax plan`

30 layers at 832x480, window 21, bfloat16, chunks in which TokenTrim doesn't intervene. The compiler
estimates cycles for each of its operations but the attention kernel's: those are counted from
shapes, at the chip's peak, the least that they can take. Of several chips, one is shown.
"""

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator

import jax
import jax.numpy as jnp

import tt_jax
from tt_jax.checkpoint import abstract
from tt_jax.models.dit import DiTConfig
from tt_jax.planning import compiler
from tt_jax.planning.machines import MACHINES, Machine
from tt_jax.strategies.self_forcing import SelfForcing

ARRAYS = {"TPU v5e": 4 * 128**2, "TPU v6e": 4 * 256**2}  # cells, of two operations a cycle each
GRID = (60, 104)
CYCLES, NAME = re.compile(r'"estimated_cycles":"(\d+)"'), re.compile(r'op_name="([^"]*)"')
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
SCOPES = ("self_attention", "cross_attention", "feed_forward")
# Loops and branches on the way to an operation: the scan over chunks, in it that over steps (one
# branch of each of its passes is that it isn't skipped), in both that over layers.
CHUNK, STEP, STEP_LAYER, LAYER = "W", "W/W/C", "W/W/C/W", "W/W"


def operations(program: str) -> Iterator[tuple[str, str, int]]:
    """Of every operation with an estimate: loops and branches around it, its name, its cycles.

    An operation that the compiler made itself, and gave no name, is where its neighbours are.
    """
    found: dict[str, list[tuple[str | None, str, int]]] = {}
    current = ""
    for line in program.splitlines():
        if start := COMPUTATION.match(line):
            current = start[1]
        elif cycles := CYCLES.search(line):
            name = NAME.search(line)
            found.setdefault(current, []).append(
                (way(name[1]) if name else None, name[1] if name else "", int(cycles[1]))
            )
    for members in found.values():
        usual = Counter(place for place, *_ in members if place is not None).most_common(1)
        for place, name, cycles in members:
            yield place if place is not None else usual[0][0] if usual else "", name, cycles


def way(name: str) -> str:
    """Loops (W) and branches (C) on the way to an operation."""
    short = name.replace("while/body", "W")
    return "/".join(
        "W" if part == "W" else "C" for part in short.split("/") if part in ("W", "cond")
    )


def part(place: str, name: str) -> str:
    """A row of the table."""
    if place == CHUNK:
        appended = "dynamic_update_slice" in name
        return "K/V buffer: a chunk appended" if appended else "noise, drift, records"
    if place == STEP:
        return "embeddings and head"
    if "splash" in name:
        return "self-attention: keys and values joined and padded for the kernel"
    if "dynamic_index_in_dim" in name:
        return "a layer's weights, keys and values taken from their stacks"
    scope = next((scope for scope in SCOPES if scope in name), "")
    if scope == "self_attention":
        product = "dot_general" in name
        return f"self-attention: {'projections' if product else 'norms, rotation, modulation'}"
    return {"": "copies", "cross_attention": "cross-attention, but the kernel"}.get(
        scope, scope.replace("_", "-")
    )


def clock(machine: Machine) -> float:
    """Cycles a second, by the peak that the maker publishes."""
    assert machine.peak is not None
    return machine.peak / (2 * ARRAYS[machine.chip])


def chunk(layers: int, machine: Machine) -> tuple[dict[str, float], float, float, tuple[int, int]]:
    """Milliseconds of a chunk's parts; seconds of tracing, and of compiling; bytes of arguments and
    of temporaries. All on one chip."""
    config, strategy = DiTConfig(layers=layers), SelfForcing(window=21)
    assert machine.peak is not None
    mesh = compiler.mesh_of(machine, config.heads)
    started = time.perf_counter()
    text = jax.ShapeDtypeStruct((1, config.text_len, config.text_dim), jnp.bfloat16)
    dit = abstract("dit", config, jnp.bfloat16)
    lowered = tt_jax.lower(dit, text, chunks=40, grid=GRID, strategy=strategy, mesh=mesh)
    traced = time.perf_counter() - started
    with jax.set_mesh(mesh):
        executable = lowered.compile()
    compiled = time.perf_counter() - started - traced
    program, memory = executable.as_text(), executable.memory_analysis()
    assert program is not None and memory is not None  # a TPU's compiler shows them

    steps, layers = len(strategy.steps), config.layers
    times = {CHUNK: 1, STEP: steps, STEP_LAYER: steps * layers, LAYER: layers}
    spent: Counter[str] = Counter()
    for place, name, cycles in operations(program):
        if place in times:  # elsewhere: what is done once, and the second attempt
            spent[part(place, name)] += times[place] * cycles
    tokens = GRID[0] * GRID[1] // config.patch**2
    queries, keys = strategy.chunk * tokens, strategy.window * tokens
    counted = 4 * queries * (keys + config.text_len) * config.dim * layers * (steps + 1)
    rows = {name: 1e3 * cycles / clock(machine) for name, cycles in spent.most_common()}
    rows["attention kernels, at least"] = 1e3 * counted / machine.peak / machine.chips
    held = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return rows, traced, compiled, held


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tpu", description=__doc__)
    known = [name for name, machine in MACHINES.items() if machine.chip in ARRAYS]
    parser.add_argument("--machine", choices=known, default="v5e-1")
    parser.add_argument("--layers", type=int, default=30)
    options = parser.parse_args(argv)
    rows, traced, compiled, held = chunk(options.layers, MACHINES[options.machine])
    total = sum(rows.values())
    arguments, temporaries = (f"{size / 1e9:.2f} GB" for size in held)

    print(
        f"{options.machine}: traced and lowered in {traced:.1f} s, compiled in {compiled:.0f} s; ",
        end="",
    )
    print(f"on each chip {arguments} of arguments, {temporaries} of temporaries")
    print("| a chunk of 12 frames, five passes | ms | share |")
    print("|---|---|---|")
    for name, value in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"| {name} | {value:.0f} | {value / total:.0%} |")
    print(f"| together | {total:.0f} | |")
