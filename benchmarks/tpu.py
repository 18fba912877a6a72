"""Where a chunk of Wan-1.3B spends its time on a TPU v5e, by its compiler's own estimates.

    python -m benchmarks tpu        needs libtpu (the extra `tpu`), but no TPU

30 layers at 832x480, window 21, bfloat16, chunks in which TokenTrim doesn't intervene. The compiler
estimates cycles for each of its operations but the attention kernel's: those are counted from
shapes, at the chip's peak, the least that they can take.
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
from tt_jax.planning.machines import MACHINES
from tt_jax.strategies.self_forcing import SelfForcing

CLOCK = 1.5e9  # of a v5e: its peak over two operations for each cell of four 128x128 arrays
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


def chunk(layers: int) -> tuple[dict[str, float], float, float]:
    """Milliseconds of a chunk's parts; seconds of tracing, and of compiling."""
    config, strategy = DiTConfig(layers=layers), SelfForcing(window=21)
    machine = MACHINES["v5e-1"]
    assert machine.peak is not None
    mesh = compiler.mesh_of(machine, config.heads)
    started = time.perf_counter()
    text = jax.ShapeDtypeStruct((1, config.text_len, config.text_dim), jnp.bfloat16)
    dit = abstract("dit", config, jnp.bfloat16)
    lowered = tt_jax.lower(dit, text, chunks=40, grid=GRID, strategy=strategy, mesh=mesh)
    traced = time.perf_counter() - started
    with jax.set_mesh(mesh):
        program = lowered.compile().as_text()
    compiled = time.perf_counter() - started - traced
    assert program is not None  # a TPU's compiler shows it

    steps, layers = len(strategy.steps), config.layers
    times = {CHUNK: 1, STEP: steps, STEP_LAYER: steps * layers, LAYER: layers}
    spent: Counter[str] = Counter()
    for place, name, cycles in operations(program):
        if place in times:  # elsewhere: what is done once, and the second attempt
            spent[part(place, name)] += times[place] * cycles
    tokens = GRID[0] * GRID[1] // config.patch**2
    queries, keys = strategy.chunk * tokens, strategy.window * tokens
    counted = 4 * queries * (keys + config.text_len) * config.dim * layers * (steps + 1)
    rows = {name: 1e3 * cycles / CLOCK for name, cycles in spent.most_common()}
    rows["attention kernels, at least"] = 1e3 * counted / machine.peak
    return rows, traced, compiled


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tpu", description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    rows, traced, compiled = chunk(parser.parse_args(argv).layers)
    total = sum(rows.values())

    print(f"traced and lowered in {traced:.1f} s, compiled in {compiled:.0f} s")
    print("| a chunk of 12 frames, five passes | ms | share |")
    print("|---|---|---|")
    for name, value in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"| {name} | {value:.0f} | {value / total:.0%} |")
    print(f"| together | {total:.0f} | |")
