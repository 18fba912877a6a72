"""Samples a second of each stage of the embedded model's training, and their share of the ideal.

A sample is a picture, a first chunk or a later one; the ideal is the operations of its pass over
what this machine's largest matrix product makes of the same dtype.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks._timing import interleaved, spread
from tt_jax.checkpoint import PARTS, find
from tt_jax.models.configs import CONFIGS
from tt_jax.models.tokenizer import Tokenizer
from tt_jax.planning.operations import cost
from tt_jax.shapes.training import stages
from tt_jax.shapes.training.captions import read_grammar
from tt_jax.shapes.training.recipe import Recipe, toy, toy_config
from tt_jax.shapes.training.stages import Pool

SIDE = 4096  # of the matrices whose product is the ideal


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=__doc__)
    parser.add_argument("--pictures", type=int, default=64, help="of a step")
    parser.add_argument("--openings", type=int, default=24, help="first chunks of a step")
    parser.add_argument("--clips", type=int, default=2, help="of a step")
    parser.add_argument(
        "--own", type=float, default=Recipe().own, help="share followed along the own denoising"
    )
    parser.add_argument("--toy", action="store_true", help="a model that learns nothing")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)

    recipe, config = (toy(), toy_config()) if options.toy else (Recipe(), CONFIGS["shapes"])
    recipe = dataclasses.replace(recipe, own=options.own, encode=options.clips)
    cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if cpu else jnp.bfloat16
    modules = {
        name: PARTS[name][1](getattr(config, name), rngs=nnx.Rngs(jax.random.key(0, impl="rbg")))
        for name in PARTS
    }
    graphs = {name: nnx.graphdef(module) for name, module in modules.items()}
    params = {name: nnx.to_pure_dict(nnx.state(modules[name])) for name in ("dit", "text")}
    tokenizer = Tokenizer(find("shapes") / "tokenizer.model", config.text.text_len)
    maker = stages.Maker(config, recipe, read_grammar(tokenizer), graphs, dtype)
    chunk = config.rollout.chunk
    key = jax.random.key(0)
    # Arguments of the programs: as constants, their encoding would be folded for minutes.
    pools = tuple(
        stages.encode_pool(modules["vae"], recipe, count, chunks, key, late=False)
        for count, chunks in ((options.openings, 1), (options.clips, recipe.clip_chunks))
    )

    def picture(params: Any, pools: tuple[Pool, Pool], key: Any) -> jax.Array:
        rows = jnp.arange(options.pictures) % options.openings
        scenes, latents, *_ = jax.tree.map(lambda x: x[rows], pools[0])
        latents = latents[:, 1:2].astype(jnp.float32)
        return _loss(maker, params, scenes, latents[:, :0], latents, key, 1)

    def opening(params: Any, pools: tuple[Pool, Pool], key: Any) -> jax.Array:
        latents = pools[0].latents.astype(jnp.float32)
        return _loss(maker, params, pools[0].scenes, latents[:, :0], latents, key, chunk)

    def later(params: Any, pools: tuple[Pool, Pool], key: Any) -> jax.Array:
        latents = pools[1].latents.astype(jnp.float32)
        past, rest = latents[:, :-chunk], latents[:, chunk:]
        return _loss(maker, params, pools[1].scenes, past, rest, key, chunk)

    counts = {
        "pictures": (picture, options.pictures),
        "first chunks": (opening, options.openings),
        "later chunks": (later, options.clips * (recipe.clip_chunks - 1)),
    }
    arms: dict[str, Callable[[], Any]] = {}
    operations = {}
    for name, (loss, _) in counts.items():
        step = jax.jit(jax.grad(loss))
        operations[name] = cost(step, params, pools, key).operations
        arms[name] = lambda step=step: step(params, pools, key)
    best = _best(dtype)
    print(f"gradients in {jnp.dtype(dtype)}; the largest product makes {best / 1e9:.0f} Gop/s")
    print("Median (lowest to highest)")
    print("| stage | samples a second | share of the ideal, % | Gop a sample |")
    print("|---|---|---|---|")
    for name, values in interleaved(arms, options.repeats).items():
        rates = [counts[name][1] / value for value in values]
        shares = [100 * operations[name] / value / best for value in values]
        each = operations[name] / counts[name][1] / 1e9
        print(f"| {name} | {spread(rates, 1)} | {spread(shares, 0)} | {each:.2f} |")


def _loss(maker, params, scenes, past, latents, key, chunk) -> jax.Array:
    return stages.flow(maker, params, scenes, past, latents, jax.random.split(key, 4), chunk)[0]


def _best(dtype: Any, repeats: int = 3) -> float:
    """Operations a second of a large matrix product."""
    matrix = jnp.ones((SIDE, SIDE), dtype)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(matrix))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(product(matrix))
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 / min(seconds)
