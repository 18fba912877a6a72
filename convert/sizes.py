"""A model's sizes from a checkpoint's shapes, and whether its tensors are all of that model's."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from convert.checkpoints import Checkpoint
from convert.detect import PUBLISHED
from convert.layout import LayoutError, Row, Table, check
from convert.problems import BadInput
from convert.tensors import Tensor
from tt_jax.checkpoint import nest, shapes
from tt_jax.models.tiny_vae import COLOURS

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
    "tiny_vae": {"latent_channels": ("decoder/conv_in/kernel", 1)},
}
LONGEST_TEXT = 1 << 16  # tokens
# What else a `config.json` beside the weights may say: its name, ours, the largest sensible number.
SETTINGS: dict[str, tuple[tuple[str, str, int | float], ...]] = {
    "tiny_vae": (),
    "dit": (
        ("num_attention_heads", "heads", 1024),
        ("num_heads", "heads", 1024),
        ("text_len", "text_len", LONGEST_TEXT),
    ),
    "vae": (
        ("dim_mult", "dim_mult", 64),
        ("num_res_blocks", "res_blocks", 16),
        ("temperal_downsample", "temporal_downsample", 1),
        ("latents_mean", "mean", 1e3),
        ("latents_std", "std", 1e3),
    ),
    "text": (
        ("relative_attention_max_distance", "max_distance", 1 << 20),
        ("text_len", "text_len", LONGEST_TEXT),
    ),
}
HEAD = 128  # width of an attention head in every published transformer
ASK = "Give --num-heads."


def config_of(checkpoint: Checkpoint, heads: int | None, text_len: int | None) -> Any:
    """The model's sizes.

    Args:
        checkpoint: Its tensors.
        heads: The transformer's, if they were asked for.
        text_len: Tokens of a text, if they were asked for.

    Returns:
        The part's config.

    Raises:
        BadInput: They can't be told, or make no model.
    """
    part, tensors = checkpoint.part, checkpoint.tensors
    table = checkpoint.layout.table(PUBLISHED[part])
    rows = {row.path: row for row in table}
    sizes: dict[str, Any] = {}
    for field, (path, axis) in SIZES[part].items():
        lengths = (x.shape[axis] for x in _votes(rows[path], tensors) if axis < x.ndim)
        if common := Counter(lengths).most_common(1):
            sizes[field] = common[0][0]
    if part == "tiny_vae":
        sizes |= _tiny(table, tensors)
    if any(row.stacked for row in table):
        sizes["layers"] = _layers(table, tensors)
    file = checkpoint.files[0]
    beside = file.path.with_name("config.json")
    for name, field, largest in SETTINGS[part]:
        if name in file.settings:
            value = file.settings[name]
            sizes[field] = tuple(value) if isinstance(value, list) else value
            if not _sensible(value, getattr(PUBLISHED[part], field), largest):
                raise BadInput([f"{beside}: {name} can't be {value!s:.80}."])
    if text_len is not None and part in ("dit", "text"):
        sizes["text_len"] = text_len
    if part == "dit":
        dim = sizes.get("dim", PUBLISHED[part].dim)
        sizes["heads"] = heads or sizes.get("heads") or (dim // HEAD if dim % HEAD == 0 else 0)
        if not sizes["heads"]:
            raise BadInput([f"{file.path}: how many heads share the width of {dim}? {ASK}"])
    try:
        return dataclasses.replace(PUBLISHED[part], **sizes)
    except ValueError as error:
        what = f" {ASK}" if part == "dit" else " See also the config.json beside it, if there is."
        raise BadInput([f"{file.path}: {error}{what}"]) from None


def unfit(checkpoint: Checkpoint, config: Any) -> list[str]:
    """A line for each tensor that is missing, unexpected or of another shape than the model's.

    Args:
        checkpoint: The tensors.
        config: The model's sizes.

    Returns:
        The lines; none if all is well.
    """
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


def _tiny(table: Table, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tiny autoencoder's widths, and the patch that its pixels are gathered into."""
    default = PUBLISHED["tiny_vae"]
    found = {row.path: tensors[row.name].shape[0] for row in table if row.name in tensors}
    levels = len(default.widths) - 1
    paths = ["decoder/conv_in/bias", *(f"decoder/levels/{i}/conv/kernel" for i in range(levels))]
    widths = (found.get(path, w) for path, w in zip(paths, default.widths, strict=True))
    pixels = found.get("decoder/head/bias", COLOURS) // COLOURS
    return {"widths": tuple(widths), "patch": max(1, math.isqrt(pixels))}


def _votes(row: Row, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that a row could have."""
    if not row.stacked:
        return [tensors[row.name]] if row.name in tensors else []
    name = re.compile(re.escape(row.name).replace(re.escape("{i}"), r"\d+"))
    return [array for key, array in tensors.items() if name.fullmatch(key)]


def _layers(table: Table, tensors: Mapping[str, Tensor]) -> int:
    """The number of layers. One wrong name doesn't make another layer, nor one less."""
    stacked = [row for row in table if row.stacked]
    front = stacked[0].name.split("{i}")[0]
    number = re.compile(re.escape(front) + r"(\d{1,6})\.")
    found = Counter(int(m[1]) for m in map(number.match, tensors) if m)
    full = sorted(i for i, count in found.items() if 2 * count > len(stacked))
    if not full:
        return 1
    return full[-1] + 1 if full[-1] < 2 * len(full) else len(full)


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
