"""States in files: pytrees of arrays with the settings that made them, whole or not at all.

A file holds the arrays one after the other, then their description as JSON, then its length and
`END`. Nothing in it is executed: of classes only names are kept, and only those that are defined
here, or loaded already, are made again.
"""

import dataclasses
import importlib
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tt_jax.files import atomic
from tt_jax.strategies.state import State
from tt_jax.video import VideoState

END = b"tt_jax-1"  # with the format's version


def save_state(path: Path | str, state: State | VideoState | Any) -> None:
    """Writes a state to a file, whole or not at all.

    Of a state that is sharded over several processes all of them must call this; the first one
    writes.

    Args:
        path: the file, which is replaced if it exists.
        state: of a rollout or a video, or any other pytree of dataclasses, named tuples, lists,
            tuples, dicts, numbers, texts and arrays, typed keys and bfloat16 among them.

    Raises:
        ValueError: a part of it can't be kept in a file, as a pruning policy that is a function.
        OSError: the file can't be written.
    """
    path = Path(path)
    if jax.process_index():
        _encode(state, None, [])
        return
    try:
        with atomic(path) as aside, aside.open("wb") as file:
            arrays: list[dict[str, Any]] = []
            tree = _encode(state, file, arrays)
            header = json.dumps({"tree": tree, "arrays": arrays}).encode()
            file.write(header + len(header).to_bytes(8, "little") + END)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # which names no file, or the one beside it
        raise OSError(error.errno, error.strerror, str(path)) from None


def load_state(path: Path | str) -> Any:
    """Reads what `save_state` wrote, in any process and on any number of devices.

    Args:
        path: the file.

    Returns:
        The state, bit for bit, its arrays on JAX's default device: a program moves them to where
        its model's weights lie. Whoever continues from it refuses one that was made with other
        settings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, isn't a state's, or needs what isn't here.
    """
    path = Path(path)
    damaged = ValueError(f"{path} is no state, or is damaged: take another one.")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 16))
        length, end = int.from_bytes(file.read(8), "little"), file.read()
        if end != END or length > size - 16:
            raise damaged
        file.seek(size - 16 - length)
        try:
            header = json.loads(file.read(length))
            rows, tree = header["arrays"], header["tree"]
        except (ValueError, LookupError, TypeError):
            raise damaged from None
        file.seek(0)
        arrays = []
        for row in rows:
            dtype = np.dtype(row["dtype"])
            count = int(np.prod(row["shape"], dtype=np.int64)) * dtype.itemsize
            raw = np.fromfile(file, np.uint8, count)
            if raw.size != count or zlib.crc32(raw.data) != row["crc32"]:
                raise damaged
            value: Any = raw.view(dtype).reshape(row["shape"])
            if row["device"]:
                value = jnp.asarray(value)
                if value.dtype != dtype:
                    raise ValueError(
                        f"{path} holds {dtype}, which JAX keeps only with jax_enable_x64."
                    )
            arrays.append(value)
    return _decode(tree, arrays, path)


def _encode(value: Any, file: BinaryIO | None, arrays: list[dict[str, Any]]) -> Any:
    """A value as JSON; its arrays are written to the file, if there is one."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = _encode(jax.random.key_data(value), file, arrays)
        return {"key": data, "impl": str(jax.random.key_impl(value))}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        host: Any = value
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            host = multihost_utils.process_allgather(value, tiled=True)
        host = np.asarray(host)
        raw = np.ascontiguousarray(host).reshape(-1).view(np.uint8)
        arrays.append(
            {
                "dtype": host.dtype.name, "shape": host.shape, "crc32": zlib.crc32(raw.data),
                "device": isinstance(value, jax.Array),
            }
        )  # fmt: skip
        if file is not None:
            file.write(raw.data)
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {"dict": [[_encode(v, file, arrays) for v in pair] for pair in value.items()]}
    kind = type(value)
    names = getattr(kind, "_fields", None)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    if names is not None:
        fields = {name: _encode(getattr(value, name), file, arrays) for name in names}
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    if isinstance(value, list | tuple):
        return {kind.__name__: [_encode(one, file, arrays) for one in value]}
    raise ValueError(f"{value!r} can't be kept in a file: give what has a name instead.")


def _decode(tree: Any, arrays: list[Any], path: Path) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "path" in tree:
        return Path(tree["path"])
    if "array" in tree:
        return arrays[tree["array"]]
    if "key" in tree:
        data = _decode(tree["key"], arrays, path)
        return jax.random.wrap_key_data(data, impl=tree["impl"])
    if "dict" in tree:
        return {_decode(k, arrays, path): _decode(v, arrays, path) for k, v in tree["dict"]}
    if "class" in tree:
        fields = {name: _decode(value, arrays, path) for name, value in tree["fields"].items()}
        return _make(_find(tree["class"], path), fields, path)
    ((name, values),) = tree.items()
    return (list if name == "list" else tuple)(_decode(value, arrays, path) for value in values)


def _find(name: str, path: Path) -> type:
    """A class by its name: of this package, or of a module that is loaded already."""
    module, _, qualified = name.partition(":")
    if module.split(".")[0] == "tt_jax":
        importlib.import_module(module)
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    fits = dataclasses.is_dataclass(found) or hasattr(found, "_fields")
    if not isinstance(found, type) or not fits:
        raise ValueError(f"{path} needs {qualified} of {module}: import that first.")
    return found


def _make(kind: type, fields: dict[str, Any], path: Path) -> Any:
    """One of a class with these fields, which a check has seen when it was first made."""
    named = getattr(kind, "_fields", None)
    own = {f.name for f in dataclasses.fields(kind)} if named is None else set(named)
    if own != fields.keys():
        raise ValueError(f"{path} is of another version of this package: {kind.__name__} differs.")
    if named is not None:
        return kind(**fields)
    one = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(one, name, value)
    return one
