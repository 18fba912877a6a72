"""`.pt` and `.pth` files, read by torch, which is imported for nothing else.

A pickle can run code. Only `weights_only=True` is ever used, which can't; a file that wants more is
refused.
"""

import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.problems import BadInput
from convert.tensors import LARGEST, Tensor

DESCRIPTOR = b"PK\x07\x08"  # begins what may follow a member's bytes in a zip file
DEEPEST = 8  # levels of dicts within dicts that are looked into

# What training runs keep beside the weights, a step's number or the run's arguments. Each is read
# as an `Ignored`, so that not even these packages' code runs.
IGNORED = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
)


class Ignored:
    """Stands for an object that isn't needed: takes everything, does nothing."""

    def __new__(cls, *_: object) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_torch(path: Path) -> Mapping[tuple[str, ...], Mapping[str, Tensor]]:
    """Opens a file; its tensors are mapped into memory where the file allows it.

    Args:
        path: The file.

    Returns:
        Every dict in it that holds tensors: those by name, under the keys that lead to the dict,
        `()` for the outermost. What isn't a tensor is left out.

    Raises:
        BadInput: torch isn't installed, the file is damaged, holds no tensors or some that numpy
            can't hold, or wants to run code.
    """
    if _archive_of_others(path):
        raise BadInput([f"{path} is a zip archive: unpack it, and give what was in it."])
    try:
        import torch
    except ImportError:
        raise BadInput([f"{path} needs torch to be read: pip install 'tt-jax[convert]'."]) from None

    stored = _load(torch, path)
    if not isinstance(stored, dict):
        raise BadInput([f"{path} holds a {type(stored).__name__}, not a dict of tensors."])
    found: dict[tuple[str, ...], dict[str, Tensor]] = {}
    problems: dict[str, list[str]] = {}  # by what is wrong: one line for all tensors with it
    size = path.stat().st_size
    for keys, one in _dicts(stored):
        for key, value in one.items():
            if isinstance(value, torch.Tensor):
                try:
                    found.setdefault(keys, {})[str(key)] = _array(torch, value, size)
                except (TypeError, ValueError, RuntimeError) as error:
                    problems.setdefault(str(error), []).append(str(key))
    if problems:
        raise BadInput(
            f"{path}: {len(names)} tensors, the first is {names[0]:.200}, {what}"
            for what, names in problems.items()
        )
    if not found:
        raise BadInput([f"{path} holds no tensors."])
    return found


def _dicts(stored: dict[Any, Any]) -> list[tuple[tuple[str, ...], dict[Any, Any]]]:
    """All dicts within dicts, each once, with the keys that lead to them."""
    found: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), stored)]
    seen = {id(stored)}
    for keys, one in found:  # which grows meanwhile
        if len(keys) < DEEPEST:
            for key, value in one.items():
                if isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    found.append(((*keys, str(key)), value))
    return found


def _load(torch: Any, path: Path) -> Any:
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            _check_archive(path)
        ignored = [(Ignored, name) for name in IGNORED]
        with warnings.catch_warnings(), torch.serialization.safe_globals(ignored):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error).split("WeightsUnpickler error:")[-1]
        reason = next((line.strip() for line in text.splitlines() if line.strip()), None)
        what = "is damaged or truncated"
        if reason and "Unsupported" in reason:
            what = "wants to run more than loading weights does, and is refused"
        # Without torch's advice to trust the file.
        reason = (reason or type(error).__name__).split(" Please use")[0]
        raise BadInput([f"{path} {what}: {reason}"]) from None


def _archive_of_others(path: Path) -> bool:
    """Whether it is a zip file, but none of torch's."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    except Exception:  # a damaged one can raise anything, and is reported as that
        return False


def _check_archive(path: Path) -> None:
    """Checks that every member lies where the directory says.

    torch maps the bytes behind a member's own header without looking at the directory: a wrong
    length in that header would move all values.

    Raises:
        zipfile.BadZipFile, OSError: It is damaged.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        ends = [*(member.header_offset for member in members[1:]), archive.start_dir]
        for member, end in zip(members, ends, strict=True):
            archive.open(member).close()  # compares the header with the directory
            file.seek(member.header_offset + 26)
            begin = file.tell() + 4 + sum(struct.unpack("<HH", file.read(4)))
            end_of_data = begin + member.file_size
            file.seek(end_of_data)
            complete = end_of_data == end or file.read(4) == DESCRIPTOR
            if not complete or member.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{member.filename} isn't where it should be.")


def _array(torch: Any, value: Any, size: int) -> Tensor:
    """A tensor as an array. Raises TypeError or ValueError with the end of a sentence."""
    value = value.detach()
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise TypeError(f"of a kind that can't be converted ({value.dtype}, {value.layout}).")
    if value.nbytes > size or any(n > LARGEST for n in value.shape):
        raise ValueError(f"of shape {list(value.shape)}: its values aren't in the file.")
    if value.dtype == torch.bfloat16:  # numpy has none
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if value.dtype.is_floating_point and value.dtype.itemsize == 1:
        dtype = getattr(ml_dtypes, str(value.dtype).removeprefix("torch."), None)
        if dtype is None:
            raise TypeError(f"of a kind that can't be converted ({value.dtype}).")
        return value.view(torch.uint8).numpy().view(np.dtype(dtype))
    return value.resolve_conj().resolve_neg().numpy()
