"""Tables from the names and axes of a published checkpoint to ours, all of them checked together.

A table is a tuple of rows. Axes are written as in `"o i t h w -> t h w i o"`: the source's on the
left, ours on the right; `1` is an axis of length one that the other side lacks, and `(h w c)` are
axes that we join into one. Everything here is numpy and keeps dtypes and values: only names, order
and shapes change.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import DTypeLike

from convert.tensors import Tensor
from tt_jax.checkpoint import flatten, nest

Params = dict[Any, Any]
Shape = tuple[int, ...]


class LayoutError(ValueError):
    """A checkpoint whose arrays aren't those of the model; names every one of them.

    Attributes:
        missing: The source's names of what it lacks.
        unexpected: Its names of what the model has no place for.
        misshapen: By name, its shape and the shape that it needs.
    """

    def __init__(
        self, missing: list[str], unexpected: list[str], misshapen: dict[str, tuple[Shape, Shape]]
    ) -> None:
        self.missing, self.unexpected, self.misshapen = missing, unexpected, misshapen
        lines = [f"missing: {name}" for name in missing]
        lines += [f"unexpected: {name}" for name in unexpected]
        lines += [
            f"misshapen: {name} is {list(found)}, expected {list(wanted)}"
            for name, (found, wanted) in misshapen.items()
        ]
        super().__init__("\n  ".join([f"{len(lines)} arrays don't fit the model:", *lines]))


@dataclasses.dataclass(frozen=True)
class Row:
    """One array of ours and where it comes from.

    Attributes:
        name: The source's name. `{i}` in it is the number of a layer: ours holds all layers,
            stacked along a leading axis, and its length is their number.
        path: Ours, like "blocks/ffn/fc1/kernel"; whole numbers are places in a list.
        axes: As above, for one source.
        sizes: Lengths of joined axes, all but one in each pair of brackets.
        copies: Further names under which a checkpoint may repeat the source (tied weights); not
            read.
    """

    name: str
    path: str
    axes: str
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    copies: tuple[str, ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether ours holds one source for each layer."""
        return "{i}" in self.name

    def names(self, shape: Shape) -> list[str]:
        """The source's names.

        Args:
            shape: Of our array, whose first axis may be the layers'.

        Returns:
            One name, or one for each layer.
        """
        if not self.stacked:
            return [self.name]
        return [self.name.replace("{i}", str(i)) for i in range(shape[0])]

    def _letters(self) -> tuple[list[str], list[list[str]]]:
        """The source's axes, and ours as groups of the source's."""
        left, right = (side.split() for side in self.axes.split("->"))
        groups: list[list[str]] = []
        joined = False
        for word in right:
            letter = word.strip("()")
            if joined:
                groups[-1].append(letter)
            else:
                groups.append([] if letter == "1" else [letter])
            joined = (joined or word.startswith("(")) and not word.endswith(")")
        return left, groups

    def source_shape(self, shape: Shape) -> Shape:
        """The shape that one source needs for ours to have `shape`."""
        left, groups = self._letters()
        lengths = {"1": 1, **self.sizes}
        for group, length in zip(groups, shape[self.stacked :], strict=True):
            known = math.prod(lengths[letter] for letter in group if letter in self.sizes)
            lengths |= {letter: length // known for letter in group if letter not in self.sizes}
        return tuple(lengths[letter] for letter in left)

    def read(
        self, get: Callable[[str], Tensor], shape: Shape, dtype: DTypeLike | None = None
    ) -> Tensor:
        """Makes our array.

        Args:
            get: Returns a source by name; called for one after the other.
            shape: Ours.
            dtype: Ours; the first source's if not given.

        Returns:
            The array.
        """
        array = None
        for index, name in enumerate(self.names(shape)):
            source = get(name)
            if array is None:
                array = np.empty(shape, source.dtype if dtype is None else dtype)
            array[index if self.stacked else ...] = self._forward(source)
        assert array is not None  # a model has at least one layer
        return array

    def write(self, array: Tensor) -> dict[str, Tensor]:
        """The inverse of `read`: the sources by name, in their own dtype and shape."""
        parts = array if self.stacked else [array]
        shape = self.source_shape(array.shape)
        names = self.names(array.shape)
        return {name: self._backward(x, shape) for name, x in zip(names, parts, strict=True)}

    def _forward(self, source: Tensor) -> Tensor:
        left, groups = self._letters()
        lengths = dict(zip(left, source.shape, strict=True))
        letters = [letter for letter in left if letter != "1"]
        x = source.reshape([lengths[letter] for letter in letters])
        x = x.transpose([letters.index(letter) for group in groups for letter in group])
        return x.reshape([math.prod(lengths[letter] for letter in group) for group in groups])

    def _backward(self, array: Tensor, shape: Shape) -> Tensor:
        left, groups = self._letters()
        lengths = dict(zip(left, shape, strict=True))
        letters = [letter for group in groups for letter in group]
        x = np.asarray(array).reshape([lengths[letter] for letter in letters])
        x = x.transpose([letters.index(letter) for letter in left if letter != "1"])
        return np.ascontiguousarray(x.reshape(shape))


Table = tuple[Row, ...]


def check(table: Table, shapes: Mapping[str, Sequence[int]], model: Params) -> None:
    """Compares all names and shapes of a checkpoint with the model's.

    Args:
        table: The layout's, for the model's sizes.
        shapes: The checkpoint's, by the source's names.
        model: The model's nested dict of arrays, or of anything else that has a `shape`.

    Raises:
        LayoutError: They differ.
        ValueError: The table isn't for the model's sizes.
    """
    ours = {path: tuple(leaf.shape) for path, leaf in flatten(model)}
    if different := ours.keys() ^ {row.path for row in table}:
        raise ValueError(f"the table and the model differ in {sorted(different)}")
    wanted = {
        name: row.source_shape(ours[row.path])
        for row in table
        for name in row.names(ours[row.path])
    }
    missing = [name for name in wanted if name not in shapes]
    wanted |= {copy: wanted[row.name] for row in table for copy in row.copies}
    unexpected = [name for name in shapes if name not in wanted]
    misshapen = {
        name: (tuple(shapes[name]), shape)
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != shape
    }
    if missing or unexpected or misshapen:
        raise LayoutError(missing, unexpected, misshapen)


def to_params(table: Table, arrays: Mapping[str, Tensor], model: Params) -> Params:
    """Makes our nested dict from a checkpoint's arrays.

    Args:
        table: The layout's, for the model's sizes.
        arrays: The checkpoint's, by the source's names.
        model: See `check`.

    Returns:
        Our nested dict.

    Raises:
        LayoutError: The arrays aren't the model's.
    """
    check(table, {name: array.shape for name, array in arrays.items()}, model)
    ours = dict(flatten(model))
    return nest({r.path: r.read(arrays.__getitem__, tuple(ours[r.path].shape)) for r in table})


def from_params(table: Table, params: Params) -> dict[str, Tensor]:
    """The inverse of `to_params`.

    Args:
        table: The layout's, for the model's sizes.
        params: Our nested dict.

    Returns:
        The checkpoint's arrays, by the source's names.
    """
    leaves = dict(flatten(params))
    return {name: x for row in table for name, x in row.write(leaves[row.path]).items()}
