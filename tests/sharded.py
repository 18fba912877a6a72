"""A small rollout on a mesh, in a process of its own: `sharded.py OUT SHAPE... [PROCESS PORT]`.

SHAPE is like 1x2x4: data, sequence, tensor; 1x2x4-int8 with weights of 8 bits. Writes the latents
of each; with PROCESS and PORT this is one of two processes, each with its own devices. Of several
shapes, the states of the first and the last are saved too, and each goes on on both meshes. Not a
test by itself.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from models import random_dit

from tt_jax import Rollout, SelfForcing, TokenTrim, load_state, rollout, save_state
from tt_jax.models.dit import DiTConfig
from tt_jax.sharding import AXES, place
from tt_jax.strategies.state import State

CONFIG = DiTConfig(dim=48, ffn_dim=64, layers=2, heads=2, channels=4, text_dim=16, text_len=6)


def made(name: str, chunks: int, state: State | None = None) -> Rollout:
    """Chunks for two prompts, of which those from the fourth on are made again."""
    size, _, quantize = name.partition("-")
    shape = tuple(map(int, size.split("x")))
    config = dataclasses.replace(CONFIG, layers=3 if quantize else 2, quantize=quantize or None)
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    text = np.random.default_rng(1).normal(size=(2, 6, 16)).astype(np.float32)
    with jax.set_mesh(mesh):
        key = None if state else place(jax.random.key(0), mesh)
        out = rollout(
            place(random_dit(config), mesh), place(text, mesh), key, chunks=chunks, grid=(8, 8),
            strategy=SelfForcing(window=9), trim=TokenTrim(p=0.2, lam=-1e2), state=state,
        )  # fmt: skip
    shard = out.state.context.k.addressable_shards[0].data.shape
    assert shard[1] == 2 // shape[0] and shard[3] == 2 // shape[2], shard
    return out


def main(out: str, *args: str) -> None:
    """Writes the latents under their mesh's shape."""
    shapes = [arg for arg in args if "x" in arg]
    if len(args) > len(shapes):
        process, port = args[len(shapes) :]
        jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process))
    results = {}
    for shape in shapes:
        whole = made(shape, 7)
        results[shape] = multihost_utils.process_allgather(whole.latents, tiled=True)
        if len(shapes) > 1 and shape in (shapes[0], shapes[-1]):
            save_state(f"{out}.{shape}", whole.state)
    for saved in Path(out).parent.glob(f"{Path(out).name}.*"):
        for shape in (shapes[0], shapes[-1]):
            rest = made(shape, 1, load_state(saved))
            results[f"{saved.suffix[1:]}, then {shape}"] = np.asarray(rest.latents)
    if jax.process_index() == 0:
        np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
