"""Every tensor is read once before anything is written: its hash, and whether it is finite."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from convert.checkpoints import Checkpoint
from convert.detect import PUBLISHED
from convert.tensors import DTYPES, Tensor

PIECE = 1 << 22  # numbers, or bytes, that are looked at at once
# The bits of the exponent: all of them are set in NaN and the infinities alone.
EXPONENT = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
BITS = {dtype: EXPONENT[name] for name, dtype in DTYPES.items()}

Advance = Callable[[int], None]  # told how many bytes were done


@dataclasses.dataclass(frozen=True)
class Found:
    """What reading a tensor shows.

    Attributes:
        sha256: Of its bytes.
        not_finite: How many of its values are NaN or infinite.
        too_large: How many are finite, and not in the dtype wanted.
    """

    sha256: str
    not_finite: int
    too_large: int


def look(array: Tensor, dtype: np.dtype | None, advance: Advance) -> Found:
    """Reads a tensor piece by piece.

    Args:
        array: The tensor.
        dtype: The one that it will be cast to; None for its own.
        advance: Told how many bytes were read.

    Returns:
        What was seen.
    """
    digest = hashlib.sha256()
    flat = np.ascontiguousarray(array).reshape(-1)
    not_finite = too_large = 0
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        digest.update(piece.view(np.uint8).data)
        not_finite += _not_finite(piece)
        if dtype is not None and dtype != piece.dtype:
            with np.errstate(over="ignore", invalid="ignore"):
                too_large += _not_finite(piece.astype(dtype))
        advance(piece.nbytes)
    return Found(digest.hexdigest(), not_finite, max(0, too_large - not_finite))


def _not_finite(flat: Shaped[np.ndarray, "n"]) -> int:
    unsigned, mask = BITS[flat.dtype]
    return int(np.count_nonzero((flat.view(unsigned) & unsigned(mask)) == mask))


def file_sha256(path: Path, advance: Advance) -> str:
    """The hash of a file, which is read piece by piece.

    Args:
        path: The file.
        advance: Told how many bytes were read.

    Returns:
        SHA-256, as hexadecimal digits.

    Raises:
        OSError: It can't be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


def look_at_all(
    checkpoint: Checkpoint, dtype: np.dtype | None, advance: Advance, problems: list[str]
) -> Mapping[str, str]:
    """Looks at every tensor of a checkpoint.

    Args:
        checkpoint: The tensors.
        dtype: The one that they will be cast to; None for their own.
        advance: Told how many bytes were read.
        problems: A line is appended for each tensor that can't be taken.

    Returns:
        SHA-256 of every tensor, by the layout's name.
    """
    digests = {}
    for name, array in checkpoint.tensors.items():
        if array.dtype not in BITS:  # an unexpected one, and reported as that
            continue
        found = look(array, dtype, advance)
        digests[name] = found.sha256
        where = f"{checkpoint.names[name]} in {checkpoint.places[name]}"
        if found.not_finite:
            problems.append(f"not finite: {found.not_finite} of {array.size} values of {where}")
        if found.too_large:
            problems.append(
                f"too large for {dtype}: {found.too_large} of {array.size} values of {where}"
            )
    for row in checkpoint.layout.table(PUBLISHED[checkpoint.part]):
        for copy in row.copies:
            if {row.name, copy} <= digests.keys() and digests[copy] != digests[row.name]:
                problems.append(
                    f"{checkpoint.names[copy]} differs from {checkpoint.names[row.name]}, "
                    "of which it should be a copy"
                )
    return digests
