"""A model's arrays: their names and shapes, writing them, and reading them part by part."""

import dataclasses
import math
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from flax import nnx
from jaxtyping import DTypeLike
from orbax.checkpoint import v1 as ocp

from tt_jax.checkpoint.folder import HELD, inside
from tt_jax.checkpoint.quantised import quantised
from tt_jax.errors import ModelError

BATCH = 256 << 20  # bytes of arrays that are written at once
# How memory is asked for: all of it at once, where the system can.
ROOM: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE}
    if hasattr(mmap, "MAP_POPULATE")
    else {"access": mmap.ACCESS_COPY}
)


def flatten(params: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested dict.

    Args:
        params: The dict.
        before: Stands in front of every path.

    Yields:
        Each leaf's path, its keys joined by slashes, and the leaf.
    """
    for key, value in params.items():
        path = f"{before}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{path}/")
        else:
            yield path, value


def nest(leaves: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `flatten`.

    Args:
        leaves: By their paths.

    Returns:
        The nested dict; whole numbers in a path are places in a list (`int` keys).
    """
    params: dict[Any, Any] = {}
    for path, value in leaves.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return params


def abstract(part: str, config: Any, dtype: DTypeLike) -> Any:
    """The module of one part, with shapes in place of arrays.

    Args:
        part: A key of `HELD`.
        config: The part's sizes.
        dtype: Of its arrays.

    Returns:
        The part's module of `jax.ShapeDtypeStruct`s.
    """
    graph, state = _abstract(part, config, np.dtype(dtype))
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))  # variables of its own


@lru_cache(maxsize=16)
def _abstract(part: str, config: Any, dtype: np.dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """The same in two halves, which take a while to make."""
    module = HELD[part][1]
    return nnx.split(nnx.eval_shape(lambda: module(config, dtype=dtype, rngs=nnx.Rngs(0))))


@lru_cache(maxsize=8)
def shapes(part: str, config: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    """The shapes of a part's arrays, as float32.

    Args:
        part: A key of `PARTS`.
        config: The part's sizes.

    Returns:
        For the path of every array, like "blocks/ffn/fc1/kernel", its shape.
    """
    return dict(flatten(nnx.to_pure_dict(nnx.state(abstract(part, config, np.float32)))))


def _plain() -> ocp.Context:
    """Orbax's settings for writing: nothing is compressed. Weights shrink by a quarter only, and
    reading them would take three times as long."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context


def save_part(folder: Path, part: str, params: dict[str, Any]) -> None:
    """Writes one part's arrays under `folder/part`.

    Args:
        folder: The model's folder.
        part: A key of `PARTS`.
        params: A nested dict of arrays.
    """
    with _plain():
        ocp.save(str(folder.absolute() / part), params)
    # It says nothing but the path of the machine that wrote it.
    (folder / part / "commit_success.txt").unlink(missing_ok=True)


def save_arrays(folder: Path, part: str, arrays: Iterator[tuple[str, np.ndarray]]) -> None:
    """Like `save_part`, for arrays that come one by one: only some are in memory at once.

    Args:
        folder: The model's folder.
        part: A key of `PARTS`.
        arrays: Paths and arrays.

    Raises:
        OSError: They can't be written.
    """
    path = folder.absolute() / part
    batch: dict[str, np.ndarray] = {}
    for name, array in arrays:
        batch[name] = array
        del array  # or the largest array stays in memory while the next one is made
        if sum(x.nbytes for x in batch.values()) >= BATCH:
            _save_batch(path, batch)
            batch.clear()
    if batch:
        _save_batch(path, batch)
    ocp.partial.finalize(str(path))


def _save_batch(path: Path, batch: Mapping[str, np.ndarray]) -> None:
    try:
        with _plain():
            ocp.partial.save(str(path), nest(batch))
    except Exception as error:  # a full disk is a ValueError of tensorstore, for one
        raise OSError(f"{path} can't be written: {str(error).splitlines()[0]}") from None


def array_dtypes(folder: Path, part: str) -> dict[str, np.dtype]:
    """The dtypes in which a part is stored.

    Args:
        folder: The model's folder.
        part: A key of `PARTS`.

    Returns:
        Each array's dtype, by its path.

    Raises:
        ModelError: The part isn't there, or is damaged.
    """
    return {name: np.dtype(x.dtype) for name, x in _stored(folder, part).items()}


def _stored(folder: Path, part: str) -> dict[str, Any]:
    """What is known of each array of a part without reading it. Raises ModelError."""
    path = inside(folder, part)
    try:
        return dict(flatten(ocp.metadata(str(path)).metadata))
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        raise ModelError(f"{path} can't be read: {str(error).splitlines()[0]}") from None


def load_arrays(
    folder: Path, part: str, wanted: Collection[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the arrays of a part one by one, only some in memory at once.

    Args:
        folder: The model's folder.
        part: A key of `PARTS`.
        wanted: All paths of the part.

    Yields:
        Paths in the order of `wanted`, and arrays as they were stored.

    Raises:
        ModelError: The part isn't there, holds other arrays, or is damaged.
    """
    path, stored = inside(folder, part), _stored(folder, part)
    if different := stored.keys() ^ wanted:
        raise ModelError(f"{path} is damaged: {min(different)} shouldn't be there, or isn't.")
    for name in wanted:
        yield name, _read(path, name, stored[name].dtype)


def _read(
    path: Path, name: str, dtype: DTypeLike, index: tuple[slice, ...] | None = None
) -> np.ndarray:
    """An array of a part, or a piece of it, from where orbax put it, as another dtype.

    Orbax itself would copy the array three times, in several times the time and memory. Here it is
    read once, and a CPU's device takes it over as it lies: XLA wants it aligned to 64 bytes. (NumPy
    would ask for huge pages, for which some virtual machines take two seconds a GB.) Raises
    ModelError.
    """
    files = {"driver": "file", "path": f"{path / 'state'}/", "file_io_mode": {"mode": "memmap"}}
    place = {"driver": "ocdbt", "base": files, "path": f"{name.replace('/', '.')}/"}
    try:
        stored = ts.open({"driver": "auto", "kvstore": place}).result()
        piece = ts.cast(stored, np.dtype(dtype))[index or ()][ts.d[:].translate_to[0]]
        size = math.prod(piece.shape) * np.dtype(dtype).itemsize
        room = mmap.mmap(-1, max(size, 1), **ROOM)  # begins with a page
        array = np.frombuffer(room, np.uint8)[:size].view(dtype).reshape(piece.shape)
        ts.array(array).write(piece).result()
    except Exception as error:  # as above
        raise ModelError(f"{path} can't be read: {str(error).splitlines()[0]}") from None
    return array


def load_part(
    folder: Path,
    part: str,
    config: Any,
    dtype: DTypeLike,
    sharding: Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding | None] | None = None,
) -> Any:
    """Restores one part, each array straight into its sharding.

    A part that shall be quantised and isn't stored so is rounded on the way, on the host.

    Args:
        folder: The model's folder.
        part: A key of `HELD`.
        config: The part's sizes.
        dtype: Of the result.
        sharding: Names the sharding of an array, by its path (like "blocks/ffn/fc1/kernel") and
            shape; without it, or where it returns None, arrays go to the default device.

    Returns:
        The module, as `HELD` says.

    Raises:
        ModelError: The part isn't there, is damaged, or isn't of these sizes.
    """
    path = inside(folder, part)
    if not path.is_dir():
        raise ModelError(f"{folder} holds no '{part}': convert the checkpoint that has it.")
    try:
        graph, state = nnx.split(abstract(part, config, dtype))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ModelError(f"the sizes of {path} make no model: {error}") from None
    ours = dict(flatten(nnx.to_pure_dict(state)))
    stored, wanted = _stored(folder, part), ours
    rounds = getattr(config, "quantize", None) is not None and not any(
        x.dtype == np.int8 for x in stored.values()
    )
    if rounds:
        wanted = shapes(part, dataclasses.replace(config, quantize=None))
    if different := stored.keys() ^ wanted.keys():
        raise ModelError(f"{path} is damaged: {min(different)} shouldn't be there, or isn't.")
    for name, leaf_shape in wanted.items():
        if tuple(stored[name].shape) != leaf_shape.shape:
            raise ModelError(
                f"{path} doesn't fit its config.json: {name} is {list(stored[name].shape)}, "
                f"expected {list(leaf_shape.shape)}; convert the model again."
            )

    def place(name: str) -> jax.sharding.Sharding:
        given = sharding(name, ours[name]) if sharding else None
        return given or jax.sharding.SingleDeviceSharding(jax.devices()[0])

    if rounds:
        rounded = quantised(ours, load_arrays(folder, part, wanted))
        return nnx.merge(graph, nest({
            name: jax.device_put(array.astype(ours[name].dtype), place(name))
            for name, array in rounded
        }))  # fmt: skip

    arrays = {
        name: jax.make_array_from_callback(
            leaf.shape, place(name), partial(_read, path, name, leaf.dtype)
        )
        for name, leaf in ours.items()
    }
    return nnx.merge(graph, nest(arrays))


def cast(params: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """All arrays of a nested dict in another dtype.

    Args:
        params: The dict.
        dtype: Of the result.

    Returns:
        The same dict of JAX's arrays.
    """
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def default_dtype() -> DTypeLike:
    """float32 on a CPU, bfloat16 on a GPU or TPU."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
