"""A small rollout on a mesh, in a process of its own: `sharded.py OUT SHAPE... [PROCESS PORT]`.

SHAPE is like 1x2x4: data, sequence, tensor. Writes the latents of each; with PROCESS and PORT this
is one of two processes, each with its own devices. Not a test by itself.
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from models import random_dit

from tt_jax import SelfForcing, TokenTrim, rollout
from tt_jax.models.dit import DiTConfig
from tt_jax.sharding import AXES, place

CONFIG = DiTConfig(dim=48, ffn_dim=64, layers=2, heads=2, channels=4, text_dim=16, text_len=6)


def latents(shape: tuple[int, ...]) -> np.ndarray:
    """Seven chunks for two prompts, of which those from the fourth on are made again."""
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    text = np.random.default_rng(1).normal(size=(2, 6, 16)).astype(np.float32)
    with jax.set_mesh(mesh):
        out = rollout(
            place(random_dit(CONFIG), mesh), place(text, mesh), place(jax.random.key(0), mesh),
            chunks=7, grid=(8, 8), strategy=SelfForcing(window=9), trim=TokenTrim(p=0.2, lam=-1e2),
        )  # fmt: skip
        shard = out.state.context.k.addressable_shards[0].data.shape
        assert shard[1] == 2 // shape[0] and shard[3] == 2 // shape[2], shard
        return multihost_utils.process_allgather(out.latents, tiled=True)


def main(out: str, *args: str) -> None:
    """Writes the latents under their mesh's shape."""
    shapes = [arg for arg in args if "x" in arg]
    if len(args) > len(shapes):
        process, port = args[len(shapes) :]
        jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process))
    results = {shape: latents(tuple(map(int, shape.split("x")))) for shape in shapes}
    if jax.process_index() == 0:
        np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
