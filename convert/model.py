"""Published checkpoints to a model's folder: checked as a whole, then written leaf by leaf."""

import dataclasses
import hashlib
import json
import math
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from convert.detect import Checkpoint, checkpoints, config_of, unfit
from convert.folder import link_tree, whole_folder
from convert.problems import BadInput
from convert.scan import Advance, file_sha256, look_at_all
from convert.sources import Origin, Sources, open_sources
from tt_jax.checkpoint import (
    PARTS,
    ModelError,
    Stored,
    read_manifest,
    read_stored,
    save_arrays,
    shapes,
    write_stored,
)

PACKAGES = ("jax", "numpy", "ml_dtypes", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked for. None is the source's own: dtype, the generator that is there, heads."""

    component: str = "all"
    dtype: np.dtype | None = None
    ema: bool | None = None
    heads: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Checked checkpoints with their sizes, and the model that they make with what is there."""

    checkpoints: tuple[Checkpoint, ...]
    configs: Mapping[str, Any]
    stored: Stored
    sources: Sources


def convert(
    paths: Sequence[Path], folder: Path, wish: Wish, origins: Mapping[Path, Origin]
) -> list[str]:
    """Converts files and folders into the model's `folder`; returns what was done, in lines.

    Parts that `folder` already has and the sources haven't are kept. origins: of downloaded files.
    Raises BadInput with all problems, and writes nothing then; OSError.
    """
    problems: list[str] = []
    plan = _plan(paths, folder, wish, problems)
    files = [file.path for checkpoint in plan.checkpoints for file in checkpoint.files]
    files += [plan.sources.tokenizer] if plan.sources.tokenizer else []
    with progress() as bar:
        size = sum(file.stat().st_size for file in files)
        size += sum(x.nbytes for c in plan.checkpoints for x in c.tensors.values())
        task = bar.add_task("checking", total=size)
        advance = partial(bar.advance, task)
        sources = {file: _file(file, origins.get(file), advance, problems) for file in files}
        digests = {c.part: look_at_all(c, wish.dtype, advance, problems) for c in plan.checkpoints}
    size = sum(_size(c, plan.configs[c.part], wish.dtype) for c in plan.checkpoints)
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if not problems and shutil.disk_usage(there).free < size:
        problems.append(f"{there} has no room for the {size / 1e9:.1f} GB of the result.")
    if problems:
        raise BadInput(problems)

    with progress() as bar, whole_folder(folder) as aside:
        task = bar.add_task("writing", total=size)
        advance = partial(bar.advance, task)
        manifest = {"parts": {}, "tokenizer": None}
        if folder.exists():
            _keep(folder, aside, plan)
            manifest |= read_manifest(folder)
        for checkpoint in plan.checkpoints:
            part = checkpoint.part
            entry = {
                "layout": checkpoint.layout.name,
                "generator": checkpoint.files[0].generator,
                "files": [sources[file.path] for file in checkpoint.files],
                "arrays": {},
            }
            leaves = _leaves(
                checkpoint, plan.configs[part], wish.dtype, digests[part], entry["arrays"], advance
            )
            save_arrays(aside, part, leaves)
            manifest["parts"][part] = entry
        if plan.sources.tokenizer:
            shutil.copyfile(plan.sources.tokenizer, aside / "tokenizer.model")
            manifest["tokenizer"] = sources[plan.sources.tokenizer]
        manifest["kind"] = plan.stored.kind
        manifest["versions"] = _versions(plan)
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        write_stored(aside, plan.stored)
    return [*_report(plan), *_missing(folder, plan.stored)]


def existing(folder: Path) -> Stored:
    """The model that `folder` is already, one without parts if there is none. Raises BadInput."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return Stored()
    try:
        read_manifest(folder)
        return read_stored(folder)
    except ModelError as error:
        raise BadInput([f"{folder} exists and is no model to be added to: {error}"]) from None


def _plan(paths: Sequence[Path], folder: Path, wish: Wish, problems: list[str]) -> Plan:
    """Opens and checks all but the values. Raises BadInput; appends to `problems`."""
    sources = open_sources(paths, wish.ema)
    found = checkpoints(sources.weights, problems)
    if wish.component != "all":
        found = [checkpoint for checkpoint in found if checkpoint.part == wish.component]
        if wish.component != "text":
            sources = dataclasses.replace(sources, tokenizer=None)
    if not found and not sources.tokenizer and not problems:
        what = "" if wish.component == "all" else f" for {wish.component!r}"
        problems.append(f"no checkpoint{what} in {', '.join(map(str, paths))}.")
    try:
        old = existing(folder)
    except BadInput as error:
        problems += error.problems
        old = Stored()
    if not found and problems:
        raise BadInput(problems)

    configs = {c.part: config_of(c, wish.heads, problems) for c in found}
    for checkpoint in found:
        config = configs[checkpoint.part]
        if wrong := unfit(checkpoint, config):
            problems += wrong
        elif wish.dtype is None:
            problems += _mixed(checkpoint, config)
    kind = next((c.kind for c in found if c.part == "dit"), old.kind)
    stored = dataclasses.replace(old, kind=kind, parts={**old.parts, **configs})
    problems += _disagreements(stored, sources.vocab)
    return Plan(tuple(found), configs, stored, sources)


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


def _disagreements(stored: Stored, vocab: int) -> list[str]:
    """What keeps the parts from working together."""
    dit, vae, text = (stored.parts.get(part) for part in PARTS)
    pairs = []
    if dit and text:
        pairs += [
            ("the transformer reads text of width", dit.text_dim, "the encoder's has", text.dim),
            ("the transformer reads texts of", dit.text_len, "the encoder makes", text.text_len),
        ]
    if dit and vae:
        channels = vae.latent_channels
        pairs.append(("the transformer's latents have", dit.channels, "the VAE's have", channels))
    wrong = [f"{a} {x}, {b} {y}." for a, x, b, y in pairs if x != y]
    if text and vocab > text.vocab:
        wrong.append(f"the tokenizer has {vocab} pieces, the text encoder knows {text.vocab}.")
    return wrong


def _file(
    path: Path, origin: Origin | None, advance: Advance, problems: list[str]
) -> dict[str, Any]:
    """A source file for the manifest. Appends to `problems` if it isn't the published one."""
    sha256 = file_sha256(path, advance)
    entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}
    if origin is not None:
        entry |= {"repository": origin.repository, "revision": origin.revision}
        if origin.sha256 not in (None, sha256):
            problems.append(
                f"{path} isn't the file that {origin.repository} publishes: its SHA-256 is "
                f"{sha256}, not {origin.sha256}."
            )
    return entry


def _size(checkpoint: Checkpoint, config: Any, dtype: np.dtype | None) -> int:
    """Bytes of a part's arrays."""
    if dtype is None:
        return sum(array.nbytes for array in checkpoint.tensors.values())
    leaves = shapes(checkpoint.part, config).values()
    return sum(math.prod(leaf.shape) * dtype.itemsize for leaf in leaves)


def _leaves(
    checkpoint: Checkpoint,
    config: Any,
    dtype: np.dtype | None,
    digests: Mapping[str, str],
    record: dict[str, Any],
    advance: Advance,
) -> Iterator[tuple[str, np.ndarray]]:
    """Our arrays, one after the other; each is entered into `record`."""
    leaves = shapes(checkpoint.part, config)

    def leaf(row: Any) -> np.ndarray:
        array = row.read(checkpoint.tensors.__getitem__, leaves[row.path].shape, dtype)
        record[row.path] = {
            "shape": array.shape,
            "dtype": array.dtype.name,
            "sha256": hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest(),
            "axes": row.axes,
            "tensors": {
                checkpoint.names[name]: {
                    "shape": checkpoint.tensors[name].shape,
                    "dtype": checkpoint.tensors[name].dtype.name,
                    "sha256": digests[name],
                }
                for name in row.names(array.shape)
            },
        }
        return array

    for row in checkpoint.layout.table(config):
        yield row.path, leaf(row)  # no name for it here, or it would stay in memory
        advance(math.prod(leaves[row.path].shape) * np.dtype(record[row.path]["dtype"]).itemsize)


def _keep(folder: Path, aside: Path, plan: Plan) -> None:
    """Takes over from the folder what isn't made anew."""
    made = {checkpoint.part for checkpoint in plan.checkpoints}
    made |= {"config.json", "manifest.json"}
    made |= {"tokenizer.model"} if plan.sources.tokenizer else set()
    for path in folder.iterdir():
        if path.name not in made:
            link_tree(path, aside / path.name)


def _versions(plan: Plan) -> dict[str, str]:
    """Of Python and of the packages that took part."""
    names = [*PACKAGES]
    if any(file.pickled for checkpoint in plan.checkpoints for file in checkpoint.files):
        names.append("torch")
    return {"python": platform.python_version()} | {x: metadata.version(x) for x in names}


def _report(plan: Plan) -> Iterator[str]:
    for checkpoint in plan.checkpoints:
        dtypes = sorted({array.dtype.name for array in checkpoint.tensors.values()})
        taken = checkpoint.files[0].generator
        yield (
            f"{checkpoint.part}: {len(checkpoint.tensors)} tensors, {' and '.join(dtypes)}, "
            f"{checkpoint.layout.name} layout" + (f", taken from {taken}" if taken else "")
        )
        if checkpoint.part == "dit":
            yield f"kind: {checkpoint.kind}"
    if plan.sources.tokenizer:
        yield f"tokenizer: {plan.sources.vocab} pieces"


def _missing(folder: Path, stored: Stored) -> Iterator[str]:
    missing = [part for part in PARTS if part not in stored.parts]
    missing += [] if (folder / "tokenizer.model").exists() else ["tokenizer"]
    if missing:
        yield f"{folder} still lacks {', '.join(missing)}: convert what has it into the same folder"


def progress() -> Progress:
    """A bar in bytes, on a terminal's stderr."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
