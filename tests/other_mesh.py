"""Rollouts on meshes that callers make themselves, in a process of its own: `other_mesh.py OUT`.

Writes the latents of each. Not a test by itself.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from models import random_dit

from tt_jax import RollingForcing, SelfForcing, TokenTrim, rollout
from tt_jax.models.dit import DiTConfig

CONFIG = DiTConfig(dim=12, ffn_dim=16, layers=1, heads=1, channels=2, text_dim=4, text_len=3)
DIT = random_dit(CONFIG)
TEXT = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 4)), jnp.float32)
KEY = jax.random.key(0)
STRATEGIES = {
    "self": SelfForcing(window=6, steps=(1000, 500)),
    "rolling": RollingForcing((1000, 500)),
}


def latents(text, key, strategy="self"):
    """Four chunks, of which the last is made again, with another context."""
    return rollout(
        DIT, text, key, chunks=4, grid=(4, 4),
        strategy=STRATEGIES[strategy], trim=TokenTrim(p=0.2, lam=-1e2),
    ).latents  # fmt: skip


def mesh_of(names, kinds):
    """The eight devices, or as many of them, two along each axis."""
    shape = (2,) * len(names)
    return jax.make_mesh(shape, names, axis_types=kinds, devices=jax.devices()[: 2 ** len(names)])


def under(mesh, spec=None, program=latents):
    """With the user's mesh set, and the prompts laid out over it."""
    with jax.set_mesh(mesh):
        text = TEXT if spec is None else jax.device_put(TEXT, NamedSharding(mesh, spec))
        return program(text, KEY)


def shard_map(names, kinds=AxisType.Auto, strategy="self", **options):
    """The user's own, over the axes `names`: each device has one or two of the four prompts."""
    mesh = mesh_of(names, (kinds,) * len(names))
    split = PartitionSpec(names)
    program = partial(latents, strategy=strategy)
    return jax.jit(
        jax.shard_map(
            program, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, **options
        )
    )(TEXT, KEY)


def partly():
    """The user's own `shard_map` over one axis, another one left to XLA."""
    mesh = mesh_of(("rows", "data"), (AxisType.Auto,) * 2)
    split = PartitionSpec("rows")
    program = jax.shard_map(
        latents, in_specs=(split, PartitionSpec()), out_specs=split, axis_names={"rows"}
    )
    with jax.set_mesh(mesh):
        return jax.jit(program)(TEXT, KEY)


def pmap():
    """Two devices with two prompts each."""
    out = jax.pmap(latents, in_axes=(0, None))(TEXT.reshape(2, 2, *TEXT.shape[1:]), KEY)
    return out.reshape(4, *out.shape[2:])


explicit, auto = (AxisType.Explicit,), (AxisType.Auto,)
CASES = {
    "self": lambda: latents(TEXT, KEY),
    "rolling": lambda: latents(TEXT, KEY, "rolling"),
    "auto": lambda: under(mesh_of(("data",), auto)),
    "explicit": lambda: under(mesh_of(("data",), explicit)),
    "explicit, prompts sharded": lambda: under(
        mesh_of(("data",), explicit), PartitionSpec("data"), jax.jit(latents)
    ),
    "explicit, other names": lambda: under(
        mesh_of(("x", "y"), explicit * 2), PartitionSpec(("x", "y"))
    ),
    "explicit and auto": lambda: under(mesh_of(("data", "tensor"), explicit + auto)),
    "shard_map over data": lambda: shard_map(("data",)),
    "shard_map over batch": lambda: shard_map(("batch",)),
    "shard_map over two": lambda: shard_map(("tensor", "me")),
    "shard_map without checks": lambda: shard_map(("data",), check_vma=False),
    "shard_map, rolling": lambda: shard_map(("batch",), strategy="rolling"),
    "shard_map over one of two": partly,
    "pmap": pmap,
}


if __name__ == "__main__":
    np.savez(sys.argv[1], **{name: np.asarray(case()) for name, case in CASES.items()})
