"""Where arrays live on several devices: patterns of their paths, and the mesh axes that shard them.

Knows names and shapes, no model. A mesh has the axes `AXES`, or some of them: "data" shards the
prompts of a batch, "sequence" the tokens of a pass, "tensor" attention heads and the hidden width
of the feed-forward. Place parameters with `place` (or `tt_jax.load(..., mesh=mesh)`) and call
everything under `with jax.set_mesh(mesh)`: XLA shards the rest by what it finds there.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

AXES = ("data", "sequence", "tensor")

# The first pattern that is the whole path counts; an array that none describes is on every device.
# Transformer and text encoder have a leading axis of layers; what enters a pair of linear layers
# is sharded by their hidden width, so that one sum over the devices follows the second.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"blocks/(\w+_attn/)?[qkv]/kernel", PartitionSpec(None, None, "tensor")),
    (r"blocks/\w+_attn/[qkv]/bias", PartitionSpec(None, "tensor")),
    (r"blocks/\w+_attn/norm_[qk]/scale", PartitionSpec(None, "tensor")),
    (r"blocks/(\w+_attn/)?o/kernel", PartitionSpec(None, "tensor", None)),
    (r"blocks/(ffn/)?(fc1|gate)/kernel", PartitionSpec(None, None, "tensor")),
    (r"blocks/ffn/fc1/bias", PartitionSpec(None, "tensor")),
    (r"blocks/(ffn/)?fc2/kernel", PartitionSpec(None, "tensor", None)),
    (r"blocks/position", PartitionSpec(None, None, "tensor")),
    (r"embedding", PartitionSpec(None, "tensor")),
    (r"context/[kv]", PartitionSpec(None, "data", None, "tensor", None)),
    (r"context/(tokens|valid)|summary|statistics/\w+|flight/x0", PartitionSpec("data")),
)

Attend = Callable[..., Float[Array, "b t n h"]]


def mesh_shape(devices: int, heads: int, batch: int = 1) -> tuple[int, int, int]:
    """How many devices go to each of `AXES` for a transformer of `heads` heads.

    As many as divide the heads go to "tensor", which shards the weights and the context; of those
    left, as many as divide the batch to "data"; the others to "sequence".
    """
    tensor = math.gcd(devices, heads)
    data = math.gcd(devices // tensor, batch)
    return data, devices // (tensor * data), tensor


def make_mesh(
    heads: int,
    batch: int = 1,
    # jaxlib, where this class comes from, has no types.
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """A mesh of all `devices` (JAX's own if not given), shared out by `mesh_shape`."""
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(len(devices), heads, batch)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def fit(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """`spec` without the axes that the mesh lacks, or that don't divide their dimension."""
    return PartitionSpec(
        *(
            axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=False)
        )
    )


def spec(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How the array at `path`, like "blocks/ffn/fc1/kernel" or "context/k", is sharded."""
    rules = (rule for pattern, rule in RULES if re.fullmatch(pattern, path))
    return fit(next(rules, PartitionSpec()), shape, mesh)


def sharding(mesh: Mesh) -> Callable[[str, Any], NamedSharding]:
    """The sharding of each array, by its path and shape: what `checkpoint.load_part` asks for."""
    return lambda path, leaf: NamedSharding(mesh, spec(path, leaf.shape, mesh))


def place(tree: Any, mesh: Mesh) -> Any:
    """A module, or any pytree (a rollout's state, a key, embeddings), with its arrays on the mesh.

    Where several processes share the mesh, each gives the same values.
    """
    if isinstance(tree, nnx.Module):
        graph, params = nnx.split(tree)
        return nnx.merge(graph, place(nnx.to_pure_dict(params), mesh))
    of = sharding(mesh)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, of(_name(path), leaf)), tree
    )


def abstractly(tree: Any, mesh: Mesh) -> Any:
    """Shapes in place of the arrays of a pytree, with the shardings that `place` would give."""
    of = sharding(mesh)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=of(_name(path), leaf)
        ),
        tree,
    )


def constrain(tree: Any) -> Any:
    """Inside a program: the pytree, its arrays where `place` would put them. Without a mesh that
    was set by `jax.set_mesh` the tree as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, spec(_name(path), leaf.shape, mesh)
        ),
        tree,
    )


def sharded(
    attend: Attend,
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t s"] | None,
) -> Float[Array, "b t n h"]:
    """`attend(q, k, v, mask)`, each device its own prompts, queries and heads and all their keys.

    XLA can't shard a kernel by itself. Without a mesh (see `constrain`) it is one plain call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q, k, v, mask)
    queries = fit(PartitionSpec("data", "sequence", "tensor"), q.shape, mesh)
    keys = PartitionSpec(queries[0], None, queries[2])
    specs = [queries, keys, keys]
    arrays = [q, k, v]
    if mask is not None:
        rows = (axis if size > 1 else None for axis, size in zip(queries, mask.shape, strict=False))
        specs.append(PartitionSpec(*list(rows)[:2]))
        arrays.append(mask)
    part = attend if mask is not None else partial(attend, mask=None)
    return jax.shard_map(part, in_specs=tuple(specs), out_specs=queries, check_vma=False)(*arrays)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
