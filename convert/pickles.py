"""`.pt` and `.pth` files, read by torch, which is imported for nothing else.

A pickle can run code. Only `weights_only=True` is ever used, which can't; a file that wants more is
refused.
"""

import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.problems import BadInput

DESCRIPTOR = b"PK\x07\x08"  # begins what may follow a member's bytes in a zip file
GENERATORS = ("generator_ema", "generator")  # of training checkpoints; the better one first


def read_torch(path: Path, ema: bool | None) -> tuple[dict[str, np.ndarray], str | None]:
    """A file's tensors, mapped into memory where the file allows it.

    ema: which of a training checkpoint's generators to take, `generator_ema` (True) or `generator`
    (False); the first of them that is there if None.

    Returns the tensors and the generator's name, None if the file is a bare state dict. Raises
    BadInput.
    """
    try:
        import torch
    except ImportError:
        raise BadInput([f"{path} needs torch to be read: pip install 'tt-jax[convert]'."]) from None

    stored = _load(torch, path)
    if not isinstance(stored, dict):
        raise BadInput([f"{path} holds a {type(stored).__name__}, not a dict of tensors."])
    name = None
    if there := [name for name in GENERATORS if name in stored]:
        wanted = there if ema is None else [GENERATORS[not ema]]
        name = wanted[0]
        if name not in stored:
            raise BadInput([f"{path} has no {name}, only {there[0]}."])
        stored = stored[name]
    if not isinstance(stored, dict) or not stored:
        raise BadInput([f"{path} holds no tensors{f' under {name}' if name else ''}."])

    tensors, problems = {}, []
    size = path.stat().st_size
    for key, value in stored.items():
        try:
            tensors[str(key)] = _array(torch, value, size)
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"{path}: {key!s:.200} {error}")
    if problems:
        raise BadInput(problems)
    return tensors, name


def _load(torch: Any, path: Path) -> Any:
    try:
        archive = zipfile.is_zipfile(path)
        if archive:
            _check_archive(path)
        with warnings.catch_warnings():
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


def _check_archive(path: Path) -> None:
    """That every member lies where the directory says. Raises an exception of zipfile, or OSError.

    torch maps the bytes behind a member's own header without looking at the directory: a wrong
    length in that header would move all values.
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
            whole = end_of_data == end or file.read(4) == DESCRIPTOR
            if not whole or member.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{member.filename} isn't where it should be.")


def _array(torch: Any, value: Any, size: int) -> np.ndarray:
    """A tensor as an array. Raises TypeError or ValueError with the end of a sentence."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"is a {type(value).__name__}, not a tensor.")
    value = value.detach()
    if value.layout != torch.strided or value.device.type != "cpu":
        raise TypeError(f"is a tensor of another kind ({value.layout}, {value.device}).")
    if not 0 < value.nbytes <= size:
        raise ValueError(f"of shape {list(value.shape)} doesn't have its values in the file.")
    if value.dtype == torch.bfloat16:  # numpy has none
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if value.dtype not in (torch.float32, torch.float16):
        raise TypeError(f"is stored as {value.dtype}; only 32 and 16 bit floats can be converted.")
    return value.numpy()
