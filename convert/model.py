"""Published checkpoints to a model's folder: all is checked before anything is written."""

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

from convert.checkpoints import UNKNOWN, Checkpoint
from convert.detect import pattern
from convert.folder import atomic_folder, link_tree
from convert.lora import Lora, merged
from convert.plan import Plan, Request, make_plan
from convert.problems import BadInput
from convert.scan import Advance, file_sha256, look_at_all
from convert.sources import Origin, Tokenizer
from convert.tensors import Tensor
from tt_jax.checkpoint import (
    PARTS,
    Stored,
    inside,
    read_manifest,
    save_arrays,
    shapes,
    write_stored,
)

PACKAGES = ("jax", "numpy", "ml_dtypes", "orbax-checkpoint")
HINT = (
    "; say --kind causal for a model that makes a video chunk by chunk, else --kind bidirectional"
)


def convert(
    paths: Sequence[Path], folder: Path, request: Request, origins: Mapping[Path, Origin]
) -> list[str]:
    """Converts files and folders into the model's `folder`.

    Args:
        paths: Files and folders of checkpoints.
        folder: Where the model is made. Parts that it already has and the sources haven't are kept.
        request: What is asked for.
        origins: Where downloaded files are from.

    Returns:
        What was done, in lines.

    Raises:
        BadInput: With all problems; nothing was written.
        OSError: Reading or writing failed; nothing was written.
    """
    problems: list[str] = []
    plan = make_plan(paths, folder, request, problems)
    files = {file.path for checkpoint in plan.checkpoints for file in checkpoint.files}
    files |= {plan.tokenizer.path} if plan.tokenizer else set()
    files |= {lora.wanted.path for lora in plan.loras}
    with progress() as bar:
        size = sum(file.stat().st_size for file in files)
        size += sum(x.nbytes for c in plan.checkpoints for x in c.tensors.values())
        task = bar.add_task("checking", total=size)
        advance = partial(bar.advance, task)
        sources = {file: _file(file, origins.get(file), advance, problems) for file in files}
        digests = {
            c.part: look_at_all(c, request.dtype, advance, problems) for c in plan.checkpoints
        }
    if problems:
        raise BadInput(problems)
    size = sum(_size(c, plan.configs[c.part], request.dtype) for c in plan.checkpoints)
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    if shutil.disk_usage(there).free < size:
        raise BadInput([f"{there} has no room for the {size / 1e9:.1f} GB of the result."])

    with progress() as bar, atomic_folder(folder) as aside:
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
                "generator": checkpoint.files[0].model.wrapper or None,
                "files": [sources[file.path] for file in checkpoint.files],
                "arrays": {},
            }
            if part == "dit" and plan.loras:
                entry["loras"] = [
                    sources[lora.wanted.path] | {"scale": lora.wanted.scale} for lora in plan.loras
                ]
            leaves = _leaves(
                checkpoint,
                plan.configs[part],
                request.dtype,
                plan.loras if part == "dit" else (),
                digests[part],
                entry["arrays"],
                advance,
            )
            save_arrays(aside, part, leaves)
            manifest["parts"][part] = entry
        if plan.tokenizer:
            (aside / "tokenizer.model").write_bytes(plan.tokenizer.content)
            manifest["tokenizer"] = _recorded(plan.tokenizer, sources[plan.tokenizer.path])
        manifest["kind"] = plan.stored.kind
        manifest["versions"] = _versions(plan)
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        write_stored(aside, plan.stored)
    return [*_report(plan), *_missing(folder, plan.stored)]


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


def _recorded(tokenizer: Tokenizer, source: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer for the manifest; its hash is its own also where it was inside another file."""
    return {**source, "sha256": hashlib.sha256(tokenizer.content).hexdigest()}


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
    loras: Sequence[Lora],
    digests: Mapping[str, str],
    record: dict[str, Any],
    advance: Advance,
) -> Iterator[tuple[str, Tensor]]:
    """Our arrays, one after the other; each is entered into `record`."""
    leaves, get = shapes(checkpoint.part, config), merged(checkpoint, loras, dtype)

    def leaf(row: Any) -> Tensor:
        array = row.read(get, leaves[row.path].shape, dtype)
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
    made |= {"tokenizer.model"} if plan.tokenizer else set()
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
        model = checkpoint.files[0].model
        yield (
            f"{checkpoint.part}: {len(checkpoint.tensors)} tensors, {' and '.join(dtypes)}, "
            f"{checkpoint.layout.name} layout"
            + (f", taken from {model.wrapper}" if model.wrapper else "")
            + (f", without the prefix {model.prefix}" if model.prefix else "")
        )
        extras = {name for file in checkpoint.files for name in file.model.extras}
        if extras:
            names = ", ".join(sorted({pattern(name) for name in extras}))
            yield f"{checkpoint.part}: left out {names}, which no model needs"
        if checkpoint.part == "dit":
            for lora in plan.loras:
                yield (
                    f"dit: {lora.wanted.path} added {lora.wanted.scale:g} times to "
                    f"{len(lora.additions)} weights, of rank {' and '.join(map(str, lora.ranks))}"
                )
            rollout = plan.stored.rollout
            if rollout.unknown:
                yield f"not known of it: {', '.join(rollout.unknown)}; to be given when it is used"
            if rollout.lacks:
                yield f"trained with {rollout.lacks}, which isn't here"
            yield f"kind: {plan.stored.kind}" + (HINT if plan.stored.kind == UNKNOWN else "")
    if plan.tokenizer:
        weights = {file.path for c in plan.checkpoints for file in c.files}
        where = f", found in {plan.tokenizer.path}" if plan.tokenizer.path in weights else ""
        yield f"tokenizer: {plan.tokenizer.vocab} pieces{where}"


def _missing(folder: Path, stored: Stored) -> Iterator[str]:
    missing = [part for part in PARTS if part not in stored.parts]
    missing += [] if inside(folder, "tokenizer.model").exists() else ["tokenizer"]
    if missing:
        yield f"{folder} still lacks {', '.join(missing)}: convert what has it into the same folder"


def progress() -> Progress:
    """A bar in bytes, on a terminal's stderr."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
