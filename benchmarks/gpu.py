"""Wan-1.3B's rollout on this accelerator, at 832x480 in bfloat16 with random weights.

    python -m benchmarks gpu                                   on one GPU, under 8 minutes
    python -m benchmarks gpu --layers 2 --grid 8 8 --toy-vae   a trial on any machine

Frames a second past the window, per implementation of attention, beside the same layers in torch
(SDPA, compiled), each an arm of the same run; what TokenTrim adds; the VAE's decoder; time to the
first frame; peak memory. The table is also written to a dated file in `benchmarks/results`.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tt_jax
from benchmarks._timing import interleaved, ratios, spread
from tt_jax._rollout import _begin, _copy, _rollout
from tt_jax.checkpoint import abstract
from tt_jax.frames import decode
from tt_jax.models.dit import DiTConfig
from tt_jax.models.vae import VAEConfig
from tt_jax.nn import attention
from tt_jax.planning.machines import MACHINES
from tt_jax.planning.operations import cost
from tt_jax.strategies.state import State

FRAMES = 12  # of a chunk, decoded
PASSES = 5  # of a chunk: four steps and the context's
WARM = 7  # chunks until the window is full


def random_module(name: str, config: DiTConfig | VAEConfig, dtype: jnp.dtype) -> Any:
    """A DiT or VAE with random weights of a small deviation."""
    graph, params = nnx.split(abstract(name, config, dtype))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(leaves))
    made = [
        0.02 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(structure, made))


def main(argv: list[str]) -> None:
    """Prints the table and writes it to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--grid", type=int, nargs=2, default=[60, 104], help="of the latents")
    parser.add_argument("--chunks", type=int, default=2, help="in each timed call")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--toy-vae", action="store_true", help="the decoder at width 8")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    lines = list(table(options))
    print("\n".join(lines))
    options.results.mkdir(exist_ok=True)
    file = options.results / f"gpu-{datetime.date.today():%Y-%m-%d}.md"
    file.write_text("\n".join(lines) + "\n")


def table(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the report."""
    device, dtype = jax.devices()[0], jnp.bfloat16
    config = dataclasses.replace(DiTConfig.wan_1_3b(), layers=options.layers)
    grid, strategy = tuple(options.grid), tt_jax.SelfForcing()
    dit = random_module("dit", config, dtype)
    graph, params = nnx.split(dit)
    text = jnp.ones((1, config.text_len, config.text_dim), dtype)
    key = jax.random.key(0)

    def arm(trim: tt_jax.TokenTrim, impl: str | None = None) -> Callable[[], jax.Array]:
        """So many chunks from a full window; `impl` of attention, wherever it can."""

        def pick(q: jax.Array, k: jax.Array, mask: jax.Array | None = None) -> attention.Choice:
            return default(q, k, mask) if impl is None else attention.Choice(impl, "asked for")

        default = attention.choice
        settings = {"grid": grid, "strategy": strategy, "trim": trim}
        with mock.patch.object(attention, "choice", pick):
            jax.clear_caches()
            state = tt_jax.rollout(dit, text, key, chunks=WARM, **settings).state
            program = _rollout.lower(
                graph, params, text, options.chunks, grid, strategy, trim, None, state, False
            ).compile()
        return lambda: program(params, text, trim, None, _copy(state)).latents

    state = jax.eval_shape(lambda: _begin(graph, params, text, key, grid, strategy, None))

    def chunk(params: nnx.State, text: jax.Array, state: State) -> tt_jax.Rollout:
        trim = tt_jax.TokenTrim.off()
        return _rollout(graph, params, text, 1, grid, strategy, trim, None, state, False)

    operations = cost(chunk, params, text, state).operations
    peak = next(
        (m.peak for m in MACHINES.values() if m.chip.split(" SXM")[0] in device.device_kind), None
    )

    implementations = ["xla"]
    if device.platform == "gpu":
        implementations.insert(0, "cudnn")
    off = tt_jax.TokenTrim.off()
    arms: dict[str, Callable[[], object]] = {
        f"tt_jax, {impl}": arm(off, impl) for impl in implementations
    }
    if importlib.util.find_spec("torch"):
        import torch

        from benchmarks._torch import sdpa_pass

        on = "cuda" if device.platform == "gpu" and torch.cuda.is_available() else "cpu"
        half = torch.bfloat16 if on == "cuda" else torch.float32
        one_pass = sdpa_pass(config, strategy.slots, strategy.chunk, grid, on, half)

        def torch_chunks() -> None:
            for _ in range(PASSES * options.chunks):
                one_pass()

        arms["torch, SDPA"] = torch_chunks
    seconds = interleaved(arms, options.repeats)

    yield (
        f"{device.device_kind}, JAX {jax.__version__}, {datetime.date.today()}: "
        f"{options.layers} layers, latents of {grid[0]}x{grid[1]}, window {strategy.window}, "
        f"{options.repeats} repetitions, median (lowest to highest)"
    )
    yield f"One chunk: {operations / 1e12:.1f} TFLOP counted from shapes."
    yield ""
    yield "| transformer | frames a second | share of the peak | relative to torch |"
    yield "|---|---|---|---|"
    for name, values in seconds.items():
        rate = [FRAMES * options.chunks / value for value in values]
        share = operations * options.chunks / statistics.median(values) / peak if peak else None
        against = spread(ratios(seconds["torch, SDPA"], values), 2) if "torch, SDPA" in arms else ""
        yield f"| {name} | {spread(rate, 1)} | {f'{share:.0%}' if share else ''} | {against} |"

    trims = {
        "off": off,
        "never abnormal": tt_jax.TokenTrim(lam=1e9),
        "every chunk, `first_step`": tt_jax.TokenTrim(lam=-1e9, when="first_step"),
    }
    costs = interleaved({name: arm(trim) for name, trim in trims.items()}, options.repeats)
    yield ""
    yield "| TokenTrim | relative to off |"
    yield "|---|---|"
    for name, values in costs.items():
        yield f"| {name} | {spread(ratios(values, costs['off']), 3)} |"

    wan = VAEConfig.wan()
    vae_config = dataclasses.replace(wan, dim=8) if options.toy_vae else wan
    parts = nnx.split(random_module("vae", vae_config, dtype))
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, *grid, wan.latent_channels)))
    _, cache = decode(*parts, None, latents[:, :1])

    def decoder() -> list[jax.Array]:
        frames, past = [], cache
        for i in range(1, 4):
            some, past = decode(*parts, past, latents[:, i : i + 1])
            frames.append(some)
        return frames

    decoding = interleaved({"decoder": decoder}, options.repeats)["decoder"]

    def begin() -> object:
        """A video's first frame, from the prompt's embeddings."""
        out = tt_jax.rollout(dit, text, key, chunks=1, grid=grid, strategy=strategy)
        return decode(*parts, None, out.latents[:, :1])

    jax.block_until_ready(begin())
    started = time.perf_counter()
    jax.block_until_ready(begin())
    wait = time.perf_counter() - started
    each = statistics.median(costs["never abnormal"]) / options.chunks
    yield ""
    yield f"VAE's decoder: {spread([FRAMES / value for value in decoding], 1)} frames a second."
    both = FRAMES / (each + statistics.median(decoding))
    yield f"Both, one after the other: {both:.1f} frames a second. First frame: {wait:.2f} s."
    used = (device.memory_stats() or {}).get("peak_bytes_in_use")
    if used:
        yield f"Peak memory of the process, all arms together: {used / 1e9:.1f} GB."
