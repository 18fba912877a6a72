"""LoRAs: low-rank additions to a transformer's linear layers, merged while it is converted.

Each adds `scale (alpha / rank) B A` to a weight `[out, in]`: A `[rank, in]`, B `[out, rank]`. They
are published under the names of PEFT (`base_model.model.blocks.0.self_attn.q.lora_A.weight`), of
ComfyUI (`diffusion_model. ... .lora_down.weight`, with a number `alpha` for each target), and of
diffusers (`transformer.blocks.0.attn1.to_q.lora_A.weight`).
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from convert.checkpoints import Checkpoint
from convert.detect import OPPONENTS, PUBLISHED, TRAINED, Layout, fits, is_extra, name_words
from convert.problems import BadInput
from convert.scan import look
from convert.sources import read_json, read_tensors
from convert.tensors import DTYPES, Tensor, unconvertible

# What follows a target's name: the half that it is.
HALVES = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}
HALF = re.compile(rf"\.({'|'.join(HALVES)})(\.default)?\.weight$")
ALPHA = re.compile(r"\.alpha$")
SETTINGS = "adapter_config.json"  # what PEFT writes beside its weights


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A LoRA that was asked for.

    Attributes:
        path: Its file.
        scale: What it is multiplied by.
    """

    path: Path
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Addition:
    """What is added to one weight.

    Attributes:
        down: A.
        up: B.
        factor: Of their product: the scale that was asked for, times alpha / rank.
    """

    down: Tensor
    up: Tensor
    factor: float


@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
    """An opened LoRA.

    Attributes:
        wanted: Its file, and the scale.
        additions: By the checkpoint's own name of the weight.
    """

    wanted: Wanted
    additions: Mapping[str, Addition]

    @property
    def ranks(self) -> list[int]:
        """All ranks that its additions have."""
        return sorted({x.down.shape[0] for x in self.additions.values()})


def parse(text: str) -> Wanted:
    """Reads `FILE` or `FILE:SCALE`.

    Args:
        text: As it was given.

    Returns:
        The file, and the scale, 1 if none was given.

    Raises:
        ValueError: The scale isn't a finite number.
    """
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists() or "/" in scale or "\\" in scale:
        return Wanted(Path(text))
    if not np.isfinite(float(scale)):
        raise ValueError(scale)
    return Wanted(Path(path), float(scale))


def open_lora(wanted: Wanted, checkpoint: Checkpoint) -> Lora:
    """Opens a LoRA and finds the weights that it is for.

    Args:
        wanted: The file, and the scale.
        checkpoint: The transformer's, in any layout.

    Returns:
        The LoRA.

    Raises:
        BadInput: With all that keeps it from being merged, nothing is left out silently.
        OSError: It can't be read.
    """
    path = wanted.path
    if not path.is_file():
        raise BadInput([f"{path} isn't there."])
    tensors = _chosen(path, read_tensors(path)[0])
    halves: dict[str, dict[str, Tensor]] = {}
    alphas, left = {}, []
    for name, tensor in tensors.items():
        if found := HALF.search(name):
            halves.setdefault(name[: found.start()], {})[HALVES[found[1]]] = tensor
        elif ALPHA.search(name) and tensor.size == 1:
            alphas[ALPHA.sub("", name)] = float(tensor.reshape(()))
        elif not is_extra(name, tensor):
            left.append(name)
    if not halves:
        raise BadInput([f"{path} is no LoRA: its tensors are {', '.join([*tensors][:3])}, ..."])
    left += [f"{target}.alpha" for target in alphas.keys() - halves.keys()]
    problems = [f"{path}: {name} is no part of a LoRA that can be merged." for name in left]

    layout, prefix = _layout(halves)
    places, settings = _places(layout, checkpoint), _settings(path)
    additions: dict[str, Addition] = {}
    for target, pair in halves.items():
        front, rest = name_words(target)[: len(prefix)], name_words(target)[len(prefix) :]
        place = places(rest) if front == prefix else None
        weight = None if place is None else checkpoint.tensors.get(place)
        if place is None or weight is None:
            problems.append(f"{path}: the model has no {target} to be added to.")
        elif len(pair) < 2:
            lacking = "B (up)" if "down" in pair else "A (down)"
            problems.append(f"{path}: {target} lacks its half {lacking}.")
        elif wrong := _unfit(pair["down"], pair["up"], weight):
            problems.append(f"{path}: {target} {wrong}.")
        else:
            rank = pair["down"].shape[0]
            factor = wanted.scale * settings(rank, alphas.get(target))
            additions[place] = Addition(pair["down"], pair["up"], factor)
    for name, tensor in tensors.items():
        if HALF.search(name) and look(tensor, None, lambda _: None).not_finite:
            problems.append(f"{path}: {name} isn't finite.")
    if problems:
        raise BadInput(problems)
    return Lora(wanted, additions)


def merged(
    checkpoint: Checkpoint, loras: Iterable[Lora], dtype: np.dtype | None
) -> Callable[[str], Tensor]:
    """The checkpoint's tensors with all additions, made in float32 and then cast.

    Args:
        checkpoint: The transformer's.
        loras: What is added.
        dtype: Of what an addition was made to; its own if None.

    Returns:
        A function from the checkpoint's name of a tensor to the tensor. It raises BadInput for one
        that isn't finite in its dtype.
    """
    loras = list(loras)

    def get(name: str) -> Tensor:
        tensor = checkpoint.tensors[name]
        own = [lora.additions[name] for lora in loras if name in lora.additions]
        if not own:
            return tensor
        total = tensor.astype(np.float32)
        for one in own:
            total += _product(one)
        with np.errstate(over="ignore"):
            result = total.astype(tensor.dtype if dtype is None else dtype)
        if not np.isfinite(result).all():
            raise BadInput([f"{checkpoint.names[name]} isn't finite with the LoRA added to it."])
        return result

    return get


def _product(one: Addition) -> Float32[np.ndarray, "o i"]:
    down, up = (x.astype(np.float32) for x in (one.down, one.up))
    return np.float32(one.factor) * (up @ down)


def _chosen(path: Path, dicts: Mapping[tuple[str, ...], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the dict that holds a generator's LoRA, or the only one. Raises BadInput."""
    found = {keys: x for keys, x in dicts.items() if any(map(HALF.search, x))} or dict(dicts)
    found = {keys: x for keys, x in found.items() if not _words(keys) & OPPONENTS} or found
    found = {keys: x for keys, x in found.items() if _words(keys) & TRAINED} or found
    if len(found) > 1:
        labels = ", ".join(".".join(keys) or "one without a name" for keys in found)
        raise BadInput([f"{path} holds several LoRAs, save the one you want alone: {labels}."])
    (tensors,) = found.values()
    halves = (tensor for name, tensor in tensors.items() if HALF.search(name))
    wrong = Counter(x.dtype.name for x in halves if x.dtype not in DTYPES.values())
    if wrong:
        raise BadInput(unconvertible(path, dtype, n, len(tensors)) for dtype, n in wrong.items())
    return dict(tensors)


def _words(keys: tuple[str, ...]) -> set[str]:
    return set(re.split(r"[._]", ".".join(keys).lower()))


def _layout(targets: Iterable[str]) -> tuple[Layout | None, tuple[str, ...]]:
    """The layout whose names the targets have, and what stands in front of most of them."""
    votes: Counter[tuple[Layout, tuple[str, ...]]] = Counter()
    for target in targets:
        votes.update(fits((*name_words(target), "weight"), "dit"))
    return votes.most_common(1)[0][0] if votes else (None, ())


def _places(
    layout: Layout | None, checkpoint: Checkpoint
) -> Callable[[tuple[str, ...]], str | None]:
    """From a target's words, in `layout`, to the checkpoint's name of its weight."""
    theirs = {row.name: row.path for row in (layout.table(PUBLISHED["dit"]) if layout else ())}
    ours = {row.path: row.name for row in checkpoint.layout.table(PUBLISHED["dit"])}

    def place(target: tuple[str, ...]) -> str | None:
        # The first number is the layer's; others belong to a name.
        at = next((i for i, word in enumerate(target) if word.isdigit()), len(target))
        front, number, back = target[:at], target[at : at + 1], target[at + 1 :]
        for middle in ("{i}", *number):
            path = theirs.get(".".join((*front, *((middle,) if number else ()), *back, "weight")))
            if path is not None:
                return ours[path].replace("{i}", "".join(number))
        return None

    return place


def _unfit(down: Tensor, up: Tensor, weight: Tensor) -> str | None:
    """What keeps a product from being added to a weight."""
    if down.ndim != 2 or up.ndim != 2 or weight.ndim != 2:
        return f"isn't a linear layer's: A is {list(down.shape)}, B {list(up.shape)}"
    if down.shape[0] != up.shape[1]:
        return f"has two ranks, {down.shape[0]} in A and {up.shape[1]} in B"
    made = (up.shape[0], down.shape[1])
    if made != weight.shape:
        return f"is for a weight of {list(made)}, and the model's is {list(weight.shape)}"
    return None


def _settings(path: Path) -> Callable[[int, float | None], float]:
    """What the product is multiplied by, from its rank and the file's alpha. Raises BadInput."""
    beside = path.with_name(SETTINGS)
    settings: dict[str, Any] = read_json(beside) if beside.is_file() else {}
    unknown = [
        name
        for name in ("use_dora", "fan_in_fan_out", "alpha_pattern", "lora_bias", "modules_to_save")
        if settings.get(name)
    ]
    if unknown:
        said = ", ".join(f"{name}={json.dumps(settings[name])}" for name in unknown)
        raise BadInput([f"{beside} asks for what can't be merged: {said:.200}."])
    alpha = settings.get("lora_alpha")
    if alpha is not None and type(alpha) not in (int, float):
        raise BadInput([f"{beside}: lora_alpha can't be {alpha!s:.80}."])

    def factor(rank: int, own: float | None) -> float:
        numerator = alpha if own is None else own
        if numerator is None:  # as many as the rank: LongLive's and its kin
            return 1.0
        return numerator / (rank**0.5 if settings.get("use_rslora") else rank)

    return factor
