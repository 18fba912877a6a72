"""Which layout a checkpoint has, and the model's sizes: told by the tensors' names and shapes."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from convert import dit, text, vae
from convert.layout import LayoutError, Row, Table, check
from convert.sources import Weights
from tt_jax.checkpoint import KINDS, nest, shapes
from tt_jax.models.dit import DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.models.vae import VAEConfig

# What training leaves around a name: anywhere, and in front.
WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
PREFIXES = {"model", "module", "diffusion_model"}

# Each size of a config: an array of ours, and the source's axis that has its length.
SIZES = {
    "dit": {
        "dim": ("blocks/norm_cross/scale", 0),
        "ffn_dim": ("blocks/ffn/fc1/kernel", 0),
        "channels": ("patch_embedding/kernel", 1),
        "patch": ("patch_embedding/kernel", 3),
        "text_dim": ("text_embedding/fc1/kernel", 1),
        "freq_dim": ("time_embedding/fc1/kernel", 1),
    },
    "vae": {"dim": ("encoder/conv_in/bias", 0), "latent_channels": ("from_latents/bias", 0)},
    "text": {
        "vocab": ("embedding", 0),
        "dim": ("blocks/norm1/scale", 0),
        "attention_dim": ("blocks/q/kernel", 0),
        "ffn_dim": ("blocks/fc1/kernel", 0),
        "heads": ("blocks/position", 1),
        "buckets": ("blocks/position", 0),
    },
}
# What else a `config.json` beside the weights may say: its name, ours, the largest sensible number.
SETTINGS = {
    "dit": (("num_attention_heads", "heads", 1024), ("num_heads", "heads", 1024)),
    "vae": (
        ("dim_mult", "dim_mult", 64),
        ("num_res_blocks", "res_blocks", 16),
        ("temperal_downsample", "temporal_downsample", 1),
        ("latents_mean", "mean", 1e3),
        ("latents_std", "std", 1e3),
    ),
    "text": (("relative_attention_max_distance", "max_distance", 1 << 20),),
}
PUBLISHED = {"dit": DiTConfig(), "vae": VAEConfig(), "text": TextConfig.umt5_xxl()}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way of naming and shaping one part's arrays. `table`: its rows, for a config."""

    part: str
    name: str
    table: Callable[[Any], Table]

    @cache  # noqa: B019 (there are six)
    def vocabulary(self) -> frozenset[str]:
        """All names, with every number as #."""
        rows = self.table(PUBLISHED[self.part])
        return frozenset(_pattern(name) for row in rows for name in (row.name, *row.copies))


LAYOUTS = (
    Layout("dit", "native", dit.native),
    Layout("dit", "diffusers", dit.diffusers),
    Layout("vae", "native", vae.native),
    Layout("vae", "diffusers", vae.diffusers),
    Layout("text", "native", text.native),
    Layout("text", "transformers", text.transformers),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """One part's tensors, from one file or several shards.

    tensors, names, places: by the layout's name, the array, the source's own name, and the file.
    kind: what a transformer was trained to do, see `tt_jax.checkpoint.KINDS`.
    """

    layout: Layout
    files: tuple[Weights, ...]
    tensors: Mapping[str, np.ndarray]
    names: Mapping[str, str]
    places: Mapping[str, Path]
    kind: str

    @property
    def part(self) -> str:
        """Its part of a model."""
        return self.layout.part


def bare(name: str) -> str:
    """A tensor's name without what training wrapped around it."""
    words = [word for word in name.split(".") if word not in WRAPPERS]
    while len(words) > 1 and words[0] in PREFIXES:
        words.pop(0)
    return ".".join(words)


def layout_of(names: list[str]) -> Layout | None:
    """The layout that knows most of the (bare) names; None if none knows half of them."""
    patterns = [_pattern(name) for name in names]
    known = {x: sum(pattern in x.vocabulary() for pattern in patterns) for x in LAYOUTS}
    best = max(LAYOUTS, key=known.__getitem__)
    return best if 2 * known[best] > len(names) else None


def checkpoints(weights: tuple[Weights, ...], problems: list[str]) -> list[Checkpoint]:
    """Joins files into one checkpoint per part. Appends to `problems`."""
    groups: dict[str, dict[tuple[Path, str | None], list[Weights]]] = {}
    layouts: dict[str, Layout] = {}
    for file in weights:
        layout = layout_of([bare(name) for name in file.tensors])
        if layout is None:
            some = ", ".join(itertools.islice(file.tensors, 3))
            problems.append(
                f"{file.path} isn't the transformer, VAE or text encoder of a Wan model: its "
                f"tensors are {some}, ..."
            )
            continue
        # The shards of a checkpoint lie side by side.
        group = groups.setdefault(layout.part, {})
        group.setdefault((file.path.parent, file.generator), []).append(file)
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
        for name, array in file.tensors.items():
            short = bare(name)
            if short in tensors:
                problems.append(
                    f"duplicate: {name} is in {file.path}, and as {names[short]} in "
                    f"{places[short]}."
                )
            tensors[short], names[short], places[short] = array, name, file.path
    for row in layout.table(PUBLISHED[layout.part]):
        for copy in row.copies:
            if row.name not in tensors and copy in tensors:
                for store in (tensors, names, places):
                    store[row.name] = store.pop(copy)
    kind = _kind(files) if layout.part == "dit" else "unknown"
    return Checkpoint(layout, tuple(files), tensors, names, places, kind)


def _kind(files: list[Weights]) -> str:
    first = files[0]
    if first.metadata.get("kind") in KINDS:  # our own export
        return first.metadata["kind"]
    if first.generator:
        return "causal generator"
    wrapped = any(bare(name) != name for name in first.tensors)
    if first.pickled:
        return "causal generator" if wrapped else "unknown"
    return "unknown" if wrapped else "bidirectional"


def _pattern(name: str) -> str:
    return re.sub(r"\d+|\{i\}", "#", name)


def _votes(row: Row, tensors: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The tensors that a row could have."""
    if not row.stacked:
        return [tensors[row.name]] if row.name in tensors else []
    name = re.compile(re.escape(row.name).replace(re.escape("{i}"), r"\d+"))
    return [array for key, array in tensors.items() if name.fullmatch(key)]


def _layers(table: Table, tensors: Mapping[str, np.ndarray]) -> int:
    """The number of layers. One wrong name doesn't make another layer, nor one less."""
    stacked = [row for row in table if row.stacked]
    front = stacked[0].name.split("{i}")[0]
    number = re.compile(re.escape(front) + r"(\d{1,6})\.")
    found = Counter(int(m[1]) for m in map(number.match, tensors) if m)
    full = sorted(i for i, count in found.items() if 2 * count > len(stacked))
    if not full:
        return 1
    return full[-1] + 1 if full[-1] < 2 * len(full) else len(full)


def config_of(checkpoint: Checkpoint, heads: int | None, problems: list[str]) -> Any:
    """The model's sizes. heads: the transformer's, if asked for. Appends to `problems`."""
    part, tensors = checkpoint.part, checkpoint.tensors
    table = checkpoint.layout.table(PUBLISHED[part])
    rows = {row.path: row for row in table}
    sizes: dict[str, Any] = {}
    for field, (path, axis) in SIZES[part].items():
        lengths = (x.shape[axis] for x in _votes(rows[path], tensors) if axis < x.ndim)
        if common := Counter(lengths).most_common(1):
            sizes[field] = common[0][0]
    if any(row.stacked for row in table):
        sizes["layers"] = _layers(table, tensors)
    file = checkpoint.files[0]
    beside = file.path.with_name("config.json")
    for name, field, largest in SETTINGS[part]:
        if name in file.settings:
            value = file.settings[name]
            sizes[field] = tuple(value) if isinstance(value, list) else value
            if not _sensible(value, getattr(PUBLISHED[part], field), largest):
                problems.append(f"{beside}: {name} can't be {value!s:.80}.")
                return PUBLISHED[part]
    if part == "dit":
        sizes["heads"] = heads or sizes.get("heads") or sizes.get("dim", 0) // 128
    try:
        config = dataclasses.replace(PUBLISHED[part], **sizes)
    except ValueError as error:
        problems.append(f"{file.path}, with what a config.json beside it says: {error}")
        return PUBLISHED[part]
    width = {"dit": "dim", "text": "attention_dim"}.get(part)
    if width is not None:
        size, count = getattr(config, width), config.heads
        if count < 1 or size % count or size // count % 2:
            problems.append(
                f"{file.path}: a width of {size} can't be split into {count} heads; give "
                "--num-heads."
            )
            return PUBLISHED[part]
    return config


def _sensible(value: Any, example: Any, largest: int | float) -> bool:
    """Whether a setting is of the kind of `example`, with numbers up to `largest`."""
    if isinstance(example, tuple):
        return (
            isinstance(value, list)
            and 0 < len(value) <= 256
            and all(_sensible(item, example[0], largest) for item in value)
        )
    if isinstance(example, float):
        return type(value) in (int, float) and abs(value) <= largest
    return type(value) is type(example) and (isinstance(value, bool) or 1 <= value <= largest)


def unfit(checkpoint: Checkpoint, config: Any) -> list[str]:
    """A line for each tensor that is missing, unexpected or of another shape than the model's."""
    names = checkpoint.names
    found = {name: array.shape for name, array in checkpoint.tensors.items()}
    try:
        model = nest(shapes(checkpoint.part, config))
        check(checkpoint.layout.table(config), found, model)
    except LayoutError as error:
        files = ", ".join(file.path.name for file in checkpoint.files)
        return [
            *(f"missing: {name} ({files})" for name in error.missing),
            *(
                f"unexpected: {names[name]} in {checkpoint.places[name]}"
                for name in error.unexpected
            ),
            *(
                f"misshapen: {names[name]} in {checkpoint.places[name]} is {list(is_)}, "
                f"expected {list(wanted)}"
                for name, (is_, wanted) in error.misshapen.items()
            ),
        ]
    return []
