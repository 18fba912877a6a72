"""safetensors files, with numpy alone: memory-mapped to read, one tensor after another to write.

The format: eight bytes, the length of a JSON header, the header, and the tensors' bytes without
gaps. Read here and not by the safetensors package, whose numpy side doesn't know bfloat16 in every
version, and which stops at the first thing that is wrong.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.problems import BadInput

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes; that of the reference implementation
METADATA = "__metadata__"


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """A file's tensors, mapped into memory and not yet read, and its metadata. Raises BadInput."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > size - 8:
            raise BadInput([f"{path} is truncated: its header isn't all there."])
        if length > LONGEST_HEADER:
            raise BadInput([f"{path} has a broken header: it claims to be {length} bytes long."])
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_once)
        metadata = header.pop(METADATA, None) or {}
        places = {name: _place(entry) for name, entry in header.items()}
        strings = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput([f"{path} has a broken header: {error}"]) from None
    if not strings:
        raise BadInput([f"{path} has a broken header: its metadata aren't text."])

    start = 8 + length
    problems, end = [], 0
    for name, (dtype, shape, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            problems.append(f"{path} has a broken header: {name} doesn't begin where it should.")
        end = stop
        if dtype not in DTYPES:
            known = ", ".join(DTYPES)
            problems.append(f"{path}: {name} is stored as {dtype}; only {known} can be converted.")
        elif stop - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            problems.append(
                f"{path} has a broken header: {name} has {stop - begin} bytes, which isn't "
                f"{dtype} {list(shape)}."
            )
        elif len(shape) > 8 or math.prod(shape) == 0:
            problems.append(f"{path}: {name} of shape {list(shape)} is no tensor of a model.")
    if end > size - start:
        problems.append(f"{path} is truncated: it has {size} bytes and needs {start + end}.")
    elif end < size - start:
        problems.append(f"{path} has {size - start - end} bytes that belong to no tensor.")
    if problems or not places:
        raise BadInput(problems or [f"{path} holds no tensors."])
    data = np.memmap(path, np.uint8, "r", offset=0)[start:]
    tensors = {
        name: data[begin:stop].view(np.ndarray).view(DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape, begin, stop) in places.items()
    }
    return tensors, metadata


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file. layout: every name's shape and dtype, in the order in which `tensors` come."""
    header: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for name, (shape, dtype) in layout.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, (shape, dtype)), (given, array) in zip(layout.items(), tensors, strict=True):
            assert (name, shape, dtype) == (given, array.shape, array.dtype), name
            file.write(np.ascontiguousarray(array).view(np.uint8).data)


def _place(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, and where the bytes begin and end. Raises ValueError, KeyError, TypeError."""
    dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"{entry} describes no tensor.")
    return dtype, shape, begin, end


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a name that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice.")
    return found
