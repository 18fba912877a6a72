"""What a conversion would make: everything is checked here but the tensors' values."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoints import Checkpoint, join
from convert.lora import Lora, Wanted, open_lora
from convert.problems import BadInput
from convert.sizes import config_of, unfit
from convert.sources import Tokenizer, open_sources
from tt_jax.checkpoint import HELD, Stored, read_manifest, read_stored, shapes
from tt_jax.errors import ModelError
from tt_jax.models.configs import RolloutConfig


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for; None is the source's own.

    Attributes:
        component: Only this part, or "all".
        dtype: Of the result.
        ema: The moving average, or the generator itself; the average where there is one if None.
        heads: The transformer's.
        text_len: Tokens of a text.
        kind: What the transformer was trained to do, see `tt_jax.checkpoint.KINDS`.
        loras: What is added to it.
        rollout: How it was trained to be rolled out; as the folder says if None.
    """

    component: str = "all"
    dtype: np.dtype | None = None
    ema: bool | None = None
    heads: int | None = None
    text_len: int | None = None
    kind: str | None = None
    loras: tuple[Wanted, ...] = ()
    rollout: RolloutConfig | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Checked checkpoints with their sizes, and the model that they make with what is there.

    Attributes:
        checkpoints: One for each part that is made.
        configs: Their sizes, by part; without those that aren't known when there are problems.
        stored: The whole model.
        tokenizer: A new one.
        loras: What is added to the transformer's weights.
    """

    checkpoints: tuple[Checkpoint, ...]
    configs: Mapping[str, Any]
    stored: Stored
    tokenizer: Tokenizer | None
    loras: tuple[Lora, ...] = ()


def _is_model(path: Path) -> bool:
    try:
        return bool(read_stored(path).parts)
    except ModelError:
        return False


def make_plan(paths: Sequence[Path], folder: Path, request: Request, problems: list[str]) -> Plan:
    """Opens what is given and checks it against the request and the model in `folder`.

    Args:
        paths: Files and folders of checkpoints.
        folder: The model's folder, which needn't be there.
        request: What is asked for.
        problems: What is wrong, but doesn't keep the values from being checked, is appended.

    Returns:
        What would be made.

    Raises:
        BadInput: Nothing can be made.
    """
    old, wrong = Stored(), []
    try:
        old = existing(folder)
    except BadInput as error:
        wrong = error.problems
    if models := [path for path in paths if _is_model(path)]:
        raise BadInput(
            [
                f"{path} is a model already: give the files that it was made of, or --quantize or "
                "--to-native to write it anew."
                for path in models
            ]
        )
    try:
        sources = open_sources(paths, request.ema)
    except BadInput as error:
        raise BadInput([*error.problems, *wrong]) from None
    found, tokenizer = join(sources.weights, problems), sources.tokenizer
    if request.component != "all":
        found = [checkpoint for checkpoint in found if checkpoint.part == request.component]
        tokenizer = tokenizer if request.component == "text" else None
    if not found and not tokenizer and not problems:
        what = "" if request.component == "all" else f" for {request.component!r}"
        problems.append(f"no checkpoint{what} in {', '.join(map(str, paths))}.")
    problems += wrong
    if not found and problems:
        raise BadInput(problems)

    configs = {}
    for checkpoint in found:
        try:
            config = config_of(checkpoint, request.heads, request.text_len)
        except BadInput as error:
            problems += error.problems
            continue
        configs[checkpoint.part] = config
        if lines := unfit(checkpoint, config):
            problems += lines
        elif request.dtype is None:
            problems += _mixed(checkpoint, config)
    kind = request.kind or next((c.kind for c in found if c.part == "dit"), old.kind)
    rollout = request.rollout or old.rollout
    stored = dataclasses.replace(old, kind=kind, parts={**old.parts, **configs}, rollout=rollout)
    if request.kind and "dit" not in stored.parts:
        problems.append("--kind says what a transformer is, and there is none.")
    problems += _disagreements(stored, tokenizer)
    loras = _open_loras(request.loras, found, problems)
    return Plan(tuple(found), configs, stored, tokenizer, loras)


def _open_loras(
    wanted: Sequence[Wanted], found: Sequence[Checkpoint], problems: list[str]
) -> tuple[Lora, ...]:
    """The LoRAs; what is wrong with them is appended to `problems`."""
    transformer = next((checkpoint for checkpoint in found if checkpoint.part == "dit"), None)
    if not wanted:
        return ()
    if transformer is None:
        problems.append("--lora adds to a transformer, and there is none among the sources.")
        return ()
    opened = []
    for one in wanted:
        try:
            opened.append(open_lora(one, transformer))
        except BadInput as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{one.path} can't be read: {error.strerror or error}.")
    return tuple(opened)


def existing(folder: Path) -> Stored:
    """Reads what a model's folder holds already.

    Args:
        folder: The folder, which needn't be there.

    Returns:
        The model, one without parts if there is none.

    Raises:
        BadInput: It can't be a model's folder, or is something else's.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput([f"{there} is a file: give the name of a folder for the model."])
    if there != folder or all(path.name.startswith(".") for path in folder.iterdir()):
        return Stored()
    try:
        read_manifest(folder)
        return read_stored(folder)
    except ModelError as error:
        raise BadInput([f"{folder} exists and is no model to be added to: {error}"]) from None


def _mixed(checkpoint: Checkpoint, config: Any) -> list[str]:
    """Arrays of ours whose sources have several dtypes."""
    wrong = []
    for row in checkpoint.layout.table(config):
        shape = shapes(checkpoint.part, config)[row.path].shape
        dtypes = {str(checkpoint.tensors[name].dtype) for name in row.names(shape)}
        if len(dtypes) > 1:
            wrong.append(
                f"{row.name} is stored as {' and '.join(sorted(dtypes))} in different layers: "
                "give --dtype."
            )
    return wrong


def _disagreements(stored: Stored, tokenizer: Tokenizer | None) -> list[str]:
    """What keeps the parts from working together."""
    dit, vae, text, tiny = (stored.parts.get(part) for part in HELD)
    pairs = []
    if dit and text:
        pairs += [
            ("the transformer reads text of width", dit.text_dim, "the encoder's has", text.dim),
            ("the transformer reads texts of", dit.text_len, "the encoder makes", text.text_len),
        ]
    for one, whose in ((vae, "the VAE's have"), (tiny, "the tiny autoencoder's have")):
        if dit and one:
            latents = "the transformer's latents have"
            pairs.append((latents, dit.channels, whose, one.latent_channels))
    wrong = [f"{a} {x}, {b} {y}." for a, x, b, y in pairs if x != y]
    if text and tokenizer and tokenizer.vocab > text.vocab:
        wrong.append(
            f"the tokenizer has {tokenizer.vocab} pieces, the text encoder knows {text.vocab}."
        )
    return wrong
