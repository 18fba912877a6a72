"""safetensors files, with numpy alone: memory-mapped to read, one tensor after another to write.

The format: eight bytes, the length of a JSON header, the header, and the tensors' bytes without
gaps. Read here and not by the safetensors package, whose numpy side doesn't know bfloat16 in every
version, and which stops at the first thing that is wrong.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from convert.problems import BadInput

# A tensor of a foreign file. Of its shape nothing is known before the layout's table is asked.
Tensor = Shaped[np.ndarray, "..."]

# What can be converted: the names in a file, and the dtypes.
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What else a file may hold beside a model's tensors, or in their place.
OTHERS = {
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "BOOL": np.dtype(np.bool_),
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
LONGEST_HEADER = 100_000_000  # bytes; that of the reference implementation
LARGEST = 1 << 48  # numbers in a tensor, were none of its axes empty
METADATA = "__metadata__"
AGAIN = "download it again."


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Opens a file: its tensors are mapped into memory and not yet read.

    Args:
        path: The file.

    Returns:
        The tensors by name, of any dtype that numpy has, and the file's metadata.

    Raises:
        BadInput: The file is damaged, or its values are of a kind that has no dtype here.
        OSError: It can't be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > size - 8:
            raise BadInput([f"{path} is truncated: its header isn't all there; {AGAIN}"])
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

    start, known = 8 + length, DTYPES | OTHERS
    problems, unknown, end = [], Counter(), 0
    for name, (dtype, shape, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            problems.append(f"{path} has a broken header: {name} doesn't begin where it should.")
        end = stop
        if dtype not in known:
            unknown[dtype] += 1
        elif stop - begin != math.prod(shape) * known[dtype].itemsize:
            problems.append(
                f"{path} has a broken header: {name} has {stop - begin} bytes, which isn't "
                f"{dtype} {list(shape)}."
            )
        elif len(shape) > 8 or math.prod(n or 1 for n in shape) > LARGEST:
            problems.append(f"{path}: {name} of shape {list(shape)} is no tensor of a model.")
    problems += [unconvertible(path, dtype, n, len(places)) for dtype, n in unknown.items()]
    if end > size - start:
        problems.append(
            f"{path} is truncated: it has {size} bytes and needs {start + end}; {AGAIN}"
        )
    elif end < size - start:
        problems.append(f"{path} has {size - start - end} bytes that belong to no tensor.")
    if problems or not places:
        raise BadInput(problems or [f"{path} holds no tensors."])
    data = np.memmap(path, np.uint8, "r", offset=0)[start:]
    tensors = {
        name: data[begin:stop].view(np.ndarray).view(known[dtype]).reshape(shape)
        for name, (dtype, shape, begin, stop) in places.items()
    }
    return tensors, metadata


def unconvertible(path: Path, dtype: str, count: int, total: int) -> str:
    """The line that says that tensors have a dtype which can't be converted.

    Args:
        path: The file.
        dtype: The name of their dtype.
        count: How many have it.
        total: How many tensors the file has.

    Returns:
        One sentence with the remedy.
    """
    return (
        f"{path}: {count} of {total} tensors are stored as {dtype}; only 32 and 16 bit floats can "
        "be converted: take the checkpoint that isn't quantised, or save it as float32."
    )


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file, one tensor after the other.

    Args:
        path: The file; one that is there is replaced.
        layout: Every name's shape and dtype (float32, float16 or bfloat16), in the order in which
            `tensors` come.
        tensors: Names and values.
        metadata: Strings for the file's header.

    Raises:
        OSError: It can't be written.
    """
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
