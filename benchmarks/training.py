"""Samples a second of each stage of the embedded model's training, and their share of the ideal.

A sample is a picture, a first chunk or a later one; the ideal is the operations of its pass over
what this machine's largest matrix product makes of the same dtype.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import tt_jax
from benchmarks._timing import interleaved, spread
from tt_jax.checkpoint import find
from tt_jax.models.tokenizer import Tokenizer
from tt_jax.models.vae import VAE
from tt_jax.planning.operations import cost
from tt_jax.shapes.training import stages
from tt_jax.shapes.training.captions import read_grammar
from tt_jax.shapes.training.recipe import Recipe

SIDE = 4096  # of the matrices whose product is the ideal


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=__doc__)
    parser.add_argument("--pictures", type=int, default=64, help="of a step")
    parser.add_argument("--openings", type=int, default=24, help="first chunks of a step")
    parser.add_argument("--clips", type=int, default=2, help="of a step")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)

    recipe = Recipe()
    cpu = jax.default_backend() == "cpu"
    dtype = jnp.float32 if cpu else jnp.bfloat16
    pipe = tt_jax.load("shapes", jnp.float32)
    assert pipe.vae is not None  # the embedded model is whole
    split = {name: nnx.split(getattr(pipe, name)) for name in ("dit", "text")}
    graphs = {name: part[0] for name, part in split.items()}
    params = {name: nnx.to_pure_dict(part[1]) for name, part in split.items()}
    tokenizer = Tokenizer(find("shapes") / "tokenizer.model", pipe.config.text.text_len)
    maker = stages.Maker(pipe.config, recipe, read_grammar(tokenizer), graphs, dtype)
    chunk = pipe.config.rollout.chunk
    key = jax.random.key(0)
    assert isinstance(pipe.vae, VAE)
    first, longer = (
        stages.encode_pool(pipe.vae, recipe, count, chunks, key, late=False)
        for count, chunks in ((options.openings, 1), (options.clips, recipe.clip_chunks))
    )

    def picture(params: Any, key: Any) -> jax.Array:
        pool, count = first, options.pictures
        rows = jnp.arange(count) % len(pool.latents)
        scenes, latents, _ = jax.tree.map(lambda x: x[rows], pool)
        latents = latents[:, 1:2].astype(jnp.float32)
        return _loss(maker, params, scenes, latents[:, :0], latents, key, 1)

    def opening(params: Any, key: Any) -> jax.Array:
        latents = first.latents.astype(jnp.float32)
        return _loss(maker, params, first.scenes, latents[:, :0], latents, key, chunk)

    def later(params: Any, key: Any) -> jax.Array:
        latents = longer.latents.astype(jnp.float32)
        past, rest = latents[:, :-chunk], latents[:, chunk:]
        return _loss(maker, params, longer.scenes, past, rest, key, chunk)

    counts = {
        "pictures": (picture, options.pictures),
        "first chunks": (opening, options.openings),
        "later chunks": (later, options.clips * (recipe.clip_chunks - 1)),
    }
    arms: dict[str, Callable[[], Any]] = {}
    operations = {}
    for name, (loss, _) in counts.items():
        step = jax.jit(jax.grad(loss))
        operations[name] = cost(step, params, key).operations
        arms[name] = lambda step=step: step(params, key)
    best = _best(dtype)
    print(f"gradients in {jnp.dtype(dtype)}; the largest product makes {best / 1e9:.0f} Gop/s")
    print("Median (lowest to highest)")
    print("| stage | samples a second | share of the ideal, % |")
    print("|---|---|---|")
    for name, values in interleaved(arms, options.repeats).items():
        rates = [counts[name][1] / value for value in values]
        shares = [100 * operations[name] / value / best for value in values]
        print(f"| {name} | {spread(rates, 1)} | {spread(shares, 0)} |")


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
