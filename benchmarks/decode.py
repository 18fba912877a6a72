"""What decoding a chunk costs, by Wan2.1's VAE and by the tiny one.

    python -m benchmarks decode     needs libtpu (the extra `tpu`) for the v5e's columns, but no TPU

A chunk is three latent frames, twelve frames of a video. Operations and the TPU compiler's estimate
are those of 832x480, the seconds of this machine's CPU those of a smaller video.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import tpu
from benchmarks._timing import interleaved
from tt_jax.checkpoint import HELD, abstract
from tt_jax.frames import decode
from tt_jax.models.tiny_vae import TinyVAEConfig
from tt_jax.models.vae import VAEConfig
from tt_jax.planning import compiler
from tt_jax.planning.machines import MACHINES
from tt_jax.planning.operations import cost

CHUNK, STRIDE = 3, 8


@dataclasses.dataclass(frozen=True)
class Way:
    """A VAE, and how many latent frames it is given at once."""

    part: str
    config: VAEConfig | TinyVAEConfig
    at_once: int

    def latents(self, grid: tuple[int, int]) -> jax.ShapeDtypeStruct:
        """Those of one call."""
        shape = (1, self.at_once, *grid, self.config.latent_channels)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def program(self, dtype: Any, grid: tuple[int, int]) -> tuple[nnx.GraphDef, Any, Any]:
        """The module in two halves and its cache in mid-video, as shapes."""
        graph, weights = nnx.split(abstract(self.part, self.config, dtype))
        cache = jax.eval_shape(
            lambda weights, latents: decode(graph, weights, None, latents)[1],
            weights, self.latents(grid),
        )  # fmt: skip
        return graph, weights, cache


WAYS = {
    "Wan2.1's VAE, a latent frame at a time": Way("vae", VAEConfig(), 1),
    "tiny VAE, a latent frame at a time": Way("tiny_vae", TinyVAEConfig(), 1),
    "tiny VAE, a chunk at once": Way("tiny_vae", TinyVAEConfig(), CHUNK),
}


def decoder(way: Way, grid: tuple[int, int]) -> Callable[[], Any]:
    """Decodes a chunk in mid-video on this machine, with random weights."""
    module = HELD[way.part][1](way.config, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(module)
    latents = jax.random.normal(jax.random.key(0), way.latents(grid).shape)
    _, cache = decode(graph, weights, None, latents)

    def run() -> Any:
        frames, past = [], cache
        for _ in range(CHUNK // way.at_once):
            some, past = decode(graph, weights, past, latents)
            frames.append(some)
        return frames

    return run


def on_tpu(way: Way) -> tuple[float, int]:
    """Milliseconds of a chunk by the compiler's cycles for a v5e, and bytes beside the weights."""
    device = compiler.devices(MACHINES["v5e-1"])[0]
    place = jax.sharding.SingleDeviceSharding(device)
    graph, *shapes = way.program(jnp.bfloat16, tpu.GRID)
    weights, cache, latents = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        (*shapes, way.latents(tpu.GRID)),
    )
    compiled = decode.lower(graph, weights, cache, latents).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None  # a TPU's compiler shows them
    cycles = sum(count for _, _, count in tpu.operations(text))
    calls = CHUNK // way.at_once
    return 1e3 * calls * cycles / tpu.clock(MACHINES["v5e-1"]), memory.temp_size_in_bytes


def main(argv: list[str]) -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks decode", description=__doc__)
    parser.add_argument("--width", type=int, default=208, help="of the CPU's video")
    parser.add_argument("--height", type=int, default=120, help="of the CPU's video")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30, help="of the transformer beside it")
    options = parser.parse_args(argv)
    small = (options.height // STRIDE, options.width // STRIDE)

    with jax.default_device(jax.devices("cpu")[0]):
        arms = {name: decoder(way, small) for name, way in WAYS.items()}
        seconds = interleaved(arms, options.repeats)
    cpu = f"CPU, s at {options.width}x{options.height}"
    row("a chunk of 12 frames", "TFLOP", cpu, "v5e, ms", "v5e, GB beside weights")
    row(*["---"] * 5)
    decoding = {}
    for name, way in WAYS.items():
        graph, weights, cache = way.program(jnp.bfloat16, tpu.GRID)
        step = partial(decode, graph)
        work = CHUNK // way.at_once * cost(step, weights, cache, way.latents(tpu.GRID)).operations
        decoding[name], memory = on_tpu(way)
        took = statistics.median(seconds[name])
        cells = f"{work / 1e12:.2f}", f"{took:.2f}", f"{decoding[name]:.0f}", f"{memory / 1e9:.2f}"
        row(name, *cells)
    transformer = sum(tpu.chunk(options.layers, MACHINES["v5e-1"])[0].values())
    row(f"transformer of {options.layers} layers, five passes", "", "", f"{transformer:.0f}", "")
    for name, spent in decoding.items():
        share, rate = spent / (spent + transformer), 12e3 / (spent + transformer)
        print(f"{name}: {share:.0%} of a chunk, {rate:.1f} frames a second in all.")


def row(*cells: str) -> None:
    """Prints one row of the table."""
    print(f"| {' | '.join(cells)} |", flush=True)
