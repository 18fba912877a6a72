"""Arrays of a model with weights of 8 bits, made from those of one without."""

from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np

from tt_jax.nn.int8 import Rounded, round_to_int8


def quantised(
    wanted: Mapping[str, jax.ShapeDtypeStruct], arrays: Iterable[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Rounds a part's weights, array by array.

    Args:
        wanted: the quantised part's arrays by their paths, of `shapes`.
        arrays: paths and arrays of the same part, not quantised.

    Yields:
        Paths and arrays of the quantised part: rounded weights and their scales, the others as they
        were.
    """
    for path, array in arrays:
        whole = path.removeprefix("blocks/")
        if whole != path and f"ends/{whole}" in wanted:
            yield f"ends/{whole}", array[[0, -1]]
            array = array[1:-1]
        if wanted[path].dtype != np.int8:
            yield path, array
            continue
        # An embedding's row is looked up by itself; a kernel's column is an output.
        axis, place = (-2, "kernel") if path.endswith("kernel") else (-1, "embedding")
        rounded = _round(array, axis)
        yield path, rounded.values
        if place == "kernel":
            yield path.removesuffix(place) + "scale", rounded.scale[..., 0, :]
        else:
            yield f"{path}_scale", rounded.scale


def _round(array: np.ndarray, axis: int) -> Rounded:
    """Layer by layer: a whole stack in float32 would be many times what is kept of it."""
    if array.ndim < 3:
        return round_to_int8(array, axis)
    layers = [round_to_int8(layer, axis) for layer in array]
    return Rounded(*(np.stack(parts) for parts in zip(*layers, strict=True)))
