"""From files and folders to opened weight files: what is there is told by content, not by name."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from convert.pickles import read_torch
from convert.problems import BadInput
from convert.tensors import read_safetensors

INDEX = ".safetensors.index.json"
LOOKED_FOR = (".safetensors", ".pt", ".pth", ".model", INDEX)  # in folders


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a file was downloaded from: a repository, the commit in it, the hash it publishes."""

    repository: str
    revision: str
    sha256: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """An opened weight file.

    tensors: by the source's names. generator: which of a training checkpoint's generators they are.
    metadata: that of a safetensors file. settings: those of the `config.json` beside it.
    pickled: whether it is a `.pt` or `.pth` file.
    """

    path: Path
    tensors: Mapping[str, np.ndarray]
    generator: str | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pickled: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
    """Everything that was found: weight files, and the tokenizer's file and size."""

    weights: tuple[Weights, ...]
    tokenizer: Path | None = None
    vocab: int = 0


def open_sources(paths: Iterable[Path], ema: bool | None) -> Sources:
    """Opens files and folders. ema: see `pickles.read_torch`. Raises BadInput with all problems."""
    problems: list[str] = []
    files: dict[Path, Path] = {}  # by what links lead to, so that each is taken once
    for path in paths:
        if not path.exists():
            problems.append(f"{path} isn't there.")
        for file in _within(path) if path.is_dir() else [path] if path.exists() else []:
            files.setdefault(file.resolve(), file)
    indices = [file for file in files.values() if file.name.endswith(INDEX)]
    maps = {}
    for index in indices:
        try:
            maps[index] = _read_index(index)
        except BadInput as error:
            problems += error.problems
            continue
        for shard in sorted(set(maps[index].values())):
            path = index.with_name(shard)
            if path.is_file():
                files.setdefault(path.resolve(), path)
            else:
                problems.append(f"{index} names {shard}, which isn't there.")

    weights, tokenizers = [], {}
    for file in files.values():
        if file in indices:
            continue
        try:
            found = _open(file, ema)
        except BadInput as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{file} can't be read: {error.strerror or error}.")
        else:
            if isinstance(found, Weights):
                weights.append(found)
            else:
                tokenizers[file] = found
    for index, places in maps.items():
        problems += _misplaced(index, places, weights)
    if ema is not None and weights and not any(file.generator for file in weights):
        problems.append("--ema and --no-ema choose between generators, and no source has any.")
    if len({file.read_bytes() for file in tokenizers}) > 1:
        problems.append(f"there are several tokenizers: {', '.join(map(str, tokenizers))}.")
    if problems:
        raise BadInput(problems)
    tokenizer, vocab = next(iter(tokenizers.items()), (None, 0))
    return Sources(tuple(weights), tokenizer, vocab)


def _within(folder: Path) -> list[Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.name.endswith(LOOKED_FOR))
    return [path for path in files if path.is_file()]


def _open(path: Path, ema: bool | None) -> Weights | int:
    """A weight file, or the number of pieces of a tokenizer. Raises BadInput, OSError."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{" or path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return Weights(path, tensors, None, metadata, _settings(path))
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        tensors, generator = read_torch(path, ema)
        return Weights(path, tensors, generator, {}, _settings(path), pickled=True)
    if head.startswith(b"\x0a"):
        pieces = sentencepiece.SentencePieceProcessor()
        try:
            pieces.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, ValueError):  # a parsing error, or of an error message in bytes
            raise BadInput([f"{path} isn't a sentencepiece model, or is damaged."]) from None
        return pieces.GetPieceSize()
    raise BadInput([f"{path} is no safetensors, torch or sentencepiece file (wrong magic)."])


def _settings(weights: Path) -> dict[str, Any]:
    """What the `config.json` beside a weight file holds; nothing without one. Raises BadInput."""
    path = weights.with_name("config.json")
    if not path.is_file():
        return {}
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput([f"{path} is no JSON: {error}"]) from None
    if not isinstance(found, dict):
        raise BadInput([f"{path} holds no settings."])
    return found


def _read_index(path: Path) -> dict[str, str]:
    """The shard of every tensor. Raises BadInput."""
    places = _read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in places.values()
    ):
        raise BadInput([f"{path} is no index: it must name a file beside it for each tensor."])
    return places


def _misplaced(index: Path, places: Mapping[str, str], weights: list[Weights]) -> list[str]:
    """Tensors that aren't in the shard that the index names."""
    opened = {file.path: file.tensors for file in weights}
    return [
        f"{name} isn't in {index.with_name(shard)}, where {index.name} has it."
        for name, shard in places.items()
        if name not in opened.get(index.with_name(shard), {name})
    ]
