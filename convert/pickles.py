"""`.pt` and `.pth` files, read by torch, which is imported for nothing else.

A pickle can run code. Only `weights_only=True` is ever used, which can't; a file that wants more is
refused.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.problems import BadInput

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error)
        if "Unsupported" in text or "weights_only" in text.split("WeightsUnpickler error")[-1]:
            reason = text.split("WeightsUnpickler error:")[-1].strip().splitlines()
            raise BadInput(
                [f"{path} wants to run more than loading weights does, and is refused: {reason[0]}"]
            ) from None
        reason = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
        raise BadInput([f"{path} is damaged or truncated: {reason[-1]}"]) from None


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
