"""Opened files joined to checkpoints, one for each part of a model, and what it was made to do."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from convert.detect import PUBLISHED, Layout
from convert.sources import Weights
from convert.tensors import Tensor
from tt_jax.checkpoint import KINDS

BIDIRECTIONAL, CAUSAL, UNKNOWN = KINDS
GENERATOR = "generator"  # what Self Forcing and its kin call the causal model that they train
# The classes of the base model, in Wan's own and in diffusers' settings.
BASE_CLASSES = {"WanModel", "WanTransformer3DModel"}


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """One part's tensors, from one file or several shards.

    Attributes:
        layout: How they are named.
        files: Where they are from.
        tensors: By the layout's name, the array.
        names: By the layout's name, the source's own.
        places: By the layout's name, the file.
        kind: What a transformer was trained to do, see `tt_jax.checkpoint.KINDS`.
    """

    layout: Layout
    files: tuple[Weights, ...]
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    places: Mapping[str, Path]
    kind: str

    @property
    def part(self) -> str:
        """Its part of a model."""
        return self.layout.part


def join(weights: Sequence[Weights], problems: list[str]) -> list[Checkpoint]:
    """Joins files into one checkpoint per part.

    Args:
        weights: The opened files.
        problems: What is wrong is appended.

    Returns:
        The checkpoints; none for a part whose files don't belong together.
    """
    groups: dict[str, dict[tuple[Path, str], list[Weights]]] = {}
    layouts: dict[str, Layout] = {}
    for file in weights:
        layout = file.model.layout
        # The shards of a checkpoint lie side by side.
        group = groups.setdefault(layout.part, {})
        group.setdefault((file.path.parent, file.model.wrapper), []).append(file)
        if layouts.setdefault(layout.part, layout) is not layout:
            problems.append(f"{file.path} isn't in the {layouts[layout.part].name} layout.")
    found = []
    for part, group in groups.items():
        if len(group) > 1:
            first = ", ".join(str(files[0].path) for files in group.values())
            problems.append(f"there is more than one checkpoint for {part!r}, give one: {first}.")
        else:
            (files,) = group.values()
            found.append(_join(layouts[part], files, problems))
    return found


def _join(layout: Layout, files: list[Weights], problems: list[str]) -> Checkpoint:
    tensors, names, places = {}, {}, {}
    for file in files:
        for one in file.model.tensors:
            if one.name in tensors:
                problems.append(
                    f"duplicate: {one.source} is in {file.path}, and as {names[one.name]} in "
                    f"{places[one.name]}."
                )
            tensors[one.name], names[one.name] = one.tensor, one.source
            places[one.name] = file.path
    for row in layout.table(PUBLISHED[layout.part]):
        for copy in row.copies:
            if row.name not in tensors and copy in tensors:
                for store in (tensors, names, places):
                    store[row.name] = store.pop(copy)
    kind = _kind(files[0]) if layout.part == "dit" else UNKNOWN
    return Checkpoint(layout, tuple(files), tensors, names, places, kind)


def _kind(file: Weights) -> str:
    """What a transformer says that it is: its names and its container say nothing."""
    if file.metadata.get("kind") in KINDS:  # our own export
        return file.metadata["kind"]
    if GENERATOR in file.model.words or any("Causal" in name for name in file.classes):
        return CAUSAL
    return BIDIRECTIONAL if BASE_CLASSES.intersection(file.classes) else UNKNOWN
