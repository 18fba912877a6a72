"""Where arrays live on several devices: patterns of their paths, and the mesh axes that shard them.

Knows names and shapes, no model. A mesh has the axes `AXES`, or some of them: "data" shards the
prompts of a batch, "sequence" the tokens of a pass, "tensor" attention heads and the hidden width
of the feed-forward. Place parameters with `place` (or `tt_jax.load(..., mesh=mesh)`) and call
everything under `with jax.set_mesh(mesh)`: XLA shards the rest by what it finds there.

Only axes that are XLA's to use (`AxisType.Auto`) are. Those of a caller's own `shard_map` or `pmap`
(`Manual`) are left to the caller, and programs that a mesh with `Explicit` axes is set for run in
`automatic`, which makes them `Auto` inside.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

AXES = ("data", "sequence", "tensor")

# The first pattern that is the whole path counts; an array that none describes is on every device.
# Transformer and text encoder have a leading axis of layers; what enters a pair of linear layers
# is sharded by their hidden width, so that one sum over the devices follows the second.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(blocks|ends)/(\w+_attn/)?[qkv]/kernel", PartitionSpec(None, None, "tensor")),
    (r"(blocks|ends)/\w+_attn/[qkv]/(bias|scale)", PartitionSpec(None, "tensor")),
    (r"(blocks|ends)/\w+_attn/norm_[qk]/scale", PartitionSpec(None, "tensor")),
    (r"(blocks|ends)/(\w+_attn/)?o/kernel", PartitionSpec(None, "tensor", None)),
    (r"(blocks|ends)/(ffn/)?(fc1|gate)/kernel", PartitionSpec(None, None, "tensor")),
    (r"(blocks|ends)/ffn/fc1/(bias|scale)", PartitionSpec(None, "tensor")),
    (r"(blocks|ends)/(ffn/)?fc2/kernel", PartitionSpec(None, "tensor", None)),
    (r"blocks/position", PartitionSpec(None, None, "tensor")),
    (r"embedding", PartitionSpec(None, "tensor")),
    (r"context/(memory/)?(archive/)?[kv]", PartitionSpec(None, "data", None, "tensor", None)),
    (r"context/memory/query", PartitionSpec(None, "data", "tensor")),
    (r"context/memory/(place|time|kept|count)", PartitionSpec(None, "data")),
    (
        r"context/(memory/)?(archive/)?(tokens|valid)|summary|statistics/\w+|flight/x0",
        PartitionSpec("data"),
    ),
)

Tree = TypeVar("Tree")  # any pytree
Attend = Callable[..., Float[Array, "b t n h"]]


def mesh_shape(devices: int, heads: int, batch: int = 1) -> tuple[int, int, int]:
    """How many devices go to each of `AXES`.

    As many as divide the heads go to "tensor", which shards the weights and the context; of those
    left, as many as divide the batch to "data"; the others to "sequence".

    Args:
        devices: how many there are.
        heads: attention heads of the transformer.
        batch: prompts of one rollout.

    Returns:
        The sizes of the axes "data", "sequence" and "tensor".
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
    """A mesh of devices, shared out by `mesh_shape`.

    Args:
        heads: attention heads of the transformer.
        batch: prompts of one rollout.
        devices: which devices; all of JAX's if not given.

    Returns:
        The mesh, with the axes `AXES`, all of them `Auto`.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = mesh_shape(len(devices), heads, batch)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def fit(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """A spec without what a mesh can't do.

    Args:
        spec: the mesh axis of each dimension.
        shape: of the array.
        mesh: the devices.

    Returns:
        The spec without the axes that the mesh lacks, or that don't divide their dimension.
    """
    return PartitionSpec(
        *(
            axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=False)
        )
    )


def spec(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How an array is sharded.

    Args:
        path: like "blocks/ffn/fc1/kernel" or "context/k".
        shape: of the array.
        mesh: the devices.

    Returns:
        The mesh axis of each dimension, by the first of `RULES` that describes the path.
    """
    rules = (rule for pattern, rule in RULES if re.fullmatch(pattern, path))
    return fit(next(rules, PartitionSpec()), shape, mesh)


def sharding(mesh: Mesh) -> Callable[[str, Any], NamedSharding]:
    """How arrays are sharded, in the form that `checkpoint.load_part` asks for.

    Args:
        mesh: the devices.

    Returns:
        The sharding of an array by its path and shape.
    """
    return lambda path, leaf: NamedSharding(mesh, spec(path, leaf.shape, mesh))


def place(tree: Any, mesh: Mesh) -> Any:
    """A module, or any pytree, with its arrays on the mesh.

    Args:
        tree: a module, a rollout's state, a key, embeddings. Where several processes share the
            mesh, each gives the same values.
        mesh: the devices.

    Returns:
        The same tree, each array sharded by its path (`spec`).
    """
    if isinstance(tree, nnx.Module):
        graph, params = nnx.split(tree)
        return nnx.merge(graph, place(nnx.to_pure_dict(params), mesh))
    of = sharding(mesh)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(leaf, of(_name(path), leaf)), tree
    )


def shared(tree: Tree) -> Tree:
    """What every process has alike, where a program of several processes takes it.

    Args:
        tree: a pytree of arrays, the same in all processes.

    Returns:
        The tree on the mesh that `jax.set_mesh` has set, if several processes share it; else as it
        is, since a program moves a process's own arrays itself.
    """
    if jax.process_count() == 1:
        return tree
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:  # inside a program of the caller's, where nothing can be moved
        return tree
    return tree if mesh.empty else place(tree, mesh)


def everywhere(tree: Tree) -> Tree:
    """Inside a program: a pytree whose arrays are whole on every device, for every host to read.

    Args:
        tree: a pytree of arrays.

    Returns:
        The tree, as it is without a mesh that was set by `jax.set_mesh`.
    """
    if _auto_mesh().empty:
        return tree
    whole = PartitionSpec()
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, whole), tree)


def abstractly(tree: Any, mesh: Mesh) -> Any:
    """Shapes in place of the arrays of a pytree.

    Args:
        tree: a pytree of arrays or of shapes.
        mesh: the devices.

    Returns:
        The same tree of shapes, with the shardings that `place` would give.
    """
    of = sharding(mesh)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=of(_name(path), leaf)
        ),
        tree,
    )


def constrain(tree: Any) -> Any:
    """Inside a program: a pytree whose arrays are where `place` would put them.

    Args:
        tree: a pytree of arrays.

    Returns:
        The tree, as it is without a mesh that was set by `jax.set_mesh`.
    """
    mesh = _auto_mesh()
    if mesh.empty:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.with_sharding_constraint(
            leaf, spec(_name(path), leaf.shape, mesh)
        ),
        tree,
    )


def automatic(program: Callable[..., Any], *args: Any) -> Any:
    """Calls a program where the axes of an `Explicit` mesh are `Auto` inside.

    Args:
        program: a function of pytrees of arrays.
        *args: what it is called with.

    Returns:
        What it returns, each array where `place` would put it. Without such a mesh it is a plain
        call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    explicit = [name for name, kind in _kinds(mesh) if kind == AxisType.Explicit]
    if not explicit:
        return program(*args)

    def run(out_sharding: Any) -> Callable[..., Any]:
        return jax.sharding.auto_axes(program, axes=tuple(explicit), out_sharding=out_sharding)

    shapes = jax.eval_shape(run(PartitionSpec()), *args)
    inside = mesh.update_axis_types(dict.fromkeys(explicit, AxisType.Auto))
    places = jax.tree_util.tree_map_with_path(
        lambda path, leaf: spec(_name(path).removeprefix("state/"), leaf.shape, inside), shapes
    )
    return run(places)(*args)


def first_sample(batch: int) -> Int[Array, ""] | int:
    """Index, in the whole batch, of the first of the samples that are here.

    Inside a `shard_map` or `pmap` of the caller's each device has samples of its own; devices are
    counted in the order of the axes.

    Args:
        batch: number of samples that are here.

    Returns:
        The index; 0 anywhere else.
    """
    device = _device()
    return 0 if device is None else device * batch


def per_device(tree: Any) -> Any:
    """Inside a `shard_map` of the caller's: a pytree of arrays that are each device's own.

    They are so in JAX's types, as what a loop carries has to be when its body makes it so.

    Args:
        tree: a pytree of arrays.

    Returns:
        The tree of the same values; anywhere else itself.
    """
    device = _device()
    if device is None:
        return tree
    return jax.tree.map(lambda x: jnp.where(device >= 0, x, x), tree)


def _device() -> Int[Array, ""] | None:
    """Number of the device among those of the caller's `shard_map` or `pmap`; None outside."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = tuple(axis for axis, kind in _kinds(mesh) if kind == AxisType.Manual)
    return jax.lax.axis_index(manual) if manual else None


def sharded(
    attend: Attend,
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    mask: Bool[Array, "#b #t keys"] | None,
    past: Any = None,
) -> Float[Array, "b t n h"]:
    """Attention, each device its own prompts, queries and heads and all their keys.

    XLA can't shard a kernel by itself. Without a mesh (see `constrain`) it is one plain call.

    Args:
        attend: `attend(q, k, v, mask)`, and `past` if there is one, as one device can do it.
        q: queries.
        k: keys.
        v: values.
        mask: which keys a query may see; None for all.
        past: arrays `[L, B, P, N, H]`, and scalars.

    Returns:
        What `attend` returns of the whole.
    """
    mesh = _auto_mesh()
    more = () if past is None else (past,)
    if mesh.empty:
        return attend(q, k, v, mask, *more)
    queries = fit(PartitionSpec("data", "sequence", "tensor"), q.shape, mesh)
    keys = PartitionSpec(queries[0], None, queries[2])
    specs: list[Any] = [queries, keys, keys, None]
    arrays = [q, k, v, mask, *more]
    if past is not None:
        layers = PartitionSpec(None, *keys)
        specs.append(jax.tree.map(lambda x: layers if x.ndim else PartitionSpec(), past))
    if mask is not None:
        rows = (axis if size > 1 else None for axis, size in zip(queries, mask.shape, strict=False))
        specs[3] = PartitionSpec(*list(rows)[:2])
    return jax.shard_map(
        attend,
        in_specs=tuple(specs),
        out_specs=queries,
        axis_names=set(mesh.axis_names),
        check_vma=False,
    )(*arrays)


def _kinds(mesh: AbstractMesh) -> list[tuple[str, AxisType]]:
    """The mesh's axes, and whose each of them is."""
    return list(zip(mesh.axis_names, mesh.axis_types, strict=True))


def _auto_mesh() -> AbstractMesh:
    """Those axes of the mesh that was set over which XLA may shard; empty if there are none."""
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(name for name, kind in _kinds(mesh) if kind == AxisType.Auto)
    return AbstractMesh(tuple(mesh.shape[name] for name in names), names)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
