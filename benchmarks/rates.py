"""Video frames a second of the embedded model's transformer and of its VAE's decoder."""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx

import tt_jax
from benchmarks._embedded import PROMPT, grid_of
from benchmarks._timing import interleaved, spread
from tt_jax.frames import decode


def main(argv: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rates", description=__doc__)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args(argv)

    pipe = tt_jax.load("shapes")
    stride = pipe.config.vae.temporal_stride
    grid = grid_of(pipe)
    text = jnp.repeat(pipe.encode_prompt(PROMPT), options.batch, axis=0)

    def transformer() -> jax.Array:
        return tt_jax.rollout(
            pipe.dit, text, jax.random.key(0), chunks=options.chunks, grid=grid,
            strategy=pipe.strategy(), trim=tt_jax.TokenTrim.off(),
        ).latents  # fmt: skip

    latents = transformer()
    parts = nnx.split(pipe.vae)
    # The first frame is a step of its own: it isn't measured.
    _, cache = decode(*parts, None, latents[:, :1])

    def decoder() -> list[jax.Array]:
        frames, past = [], cache
        for i in range(1, latents.shape[1]):
            some, past = decode(*parts, past, latents[:, i : i + 1])
            frames.append(some)
        return frames

    seconds = interleaved({"transformer": transformer, "decoder": decoder}, options.repeats)
    count = latents.shape[1]
    frames = {"transformer": stride * count, "decoder": stride * (count - 1)}
    size = "x".join(map(str, pipe.config.size[::-1]))
    print(f"{size}, batch {options.batch}, {options.repeats} repetitions")
    print("Median (lowest to highest)")
    print("| part | video frames a second |")
    print("|---|---|")
    for name, values in seconds.items():
        rates = [options.batch * frames[name] / value for value in values]
        print(f"| {name} | {spread(rates, 1)} |")
