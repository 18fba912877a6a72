"""From files and folders to opened weight files: what is there is told by content, not by name."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from convert.detect import Model, model_in
from convert.pickles import read_torch
from convert.problems import BadInput
from convert.recognise import HEAD, mistaken
from convert.tensors import Tensor, read_safetensors

INDEX = ".safetensors.index.json"
LOOKED_FOR = (".safetensors", ".pt", ".pth", ".model", INDEX)  # in folders
RESOURCES = "__MACOSX"  # beside the hidden ones, a folder that systems leave about


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a file was downloaded from.

    Attributes:
        repository: Of the hub.
        revision: The commit in it.
        sha256: The hash that it publishes, if it does.
    """

    repository: str
    revision: str
    sha256: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """An opened weight file.

    Attributes:
        path: The file.
        model: What it holds.
        names: All its tensors' own names, as an index has them.
        metadata: That of a safetensors file.
        settings: Those of the `config.json` beside it.
        classes: Names of classes in these settings, and in those of the pipeline that it is in.
        pickled: Whether it is a `.pt` or `.pth` file.
    """

    path: Path
    model: Model
    names: frozenset[str]
    metadata: Mapping[str, str]
    settings: Mapping[str, Any]
    classes: tuple[str, ...]
    pickled: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A sentencepiece model.

    Attributes:
        path: Its file, or the weight file that it was stored in.
        content: Its bytes.
        vocab: The number of its pieces.
    """

    path: Path
    content: bytes
    vocab: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
    """Everything that was found.

    Attributes:
        weights: The opened weight files.
        tokenizer: None if there is none.
    """

    weights: tuple[Weights, ...]
    tokenizer: Tokenizer | None = None


def open_sources(paths: Iterable[Path], ema: bool | None) -> Sources:
    """Opens files and folders.

    Args:
        paths: Files and folders; what is hidden in a folder is left out.
        ema: See `detect.model_in`.

    Returns:
        What is in them.

    Raises:
        BadInput: With all problems.
    """
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

    weights: list[Weights] = []
    tokenizers: list[Tokenizer] = []
    for file in files.values():
        if file in indices:
            continue
        try:
            found = _open(file, ema)
            if isinstance(found, Tokenizer):
                tokenizers.append(found)
                continue
            weights.append(found)
            if found.model.tokenizer is not None:
                tokenizers.append(_tokenizer(file, found.model.tokenizer))
        except BadInput as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{file} can't be read: {error.strerror or error}.")
    for index, places in maps.items():
        problems += _misplaced(index, places, weights)
    if ema is not None and weights and not any(file.model.choice for file in weights):
        problems.append("--ema and --no-ema choose between generators, and no source has any.")
    if len({tokenizer.content for tokenizer in tokenizers}) > 1:
        several = ", ".join(str(tokenizer.path) for tokenizer in tokenizers)
        problems.append(f"there are several tokenizers, which differ: {several}.")
    if problems:
        raise BadInput(problems)
    return Sources(tuple(weights), tokenizers[0] if tokenizers else None)


def _within(folder: Path) -> list[Path]:
    """The files that may be meant; not what systems and programs hide there."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == RESOURCES for part in parts)
        if path.name.endswith(LOOKED_FOR) and not hidden and path.is_file():
            found.append(path)
    return found


def _open(path: Path, ema: bool | None) -> Weights | Tokenizer:
    """A weight file or a tokenizer. Raises BadInput, OSError."""
    head = _head(path)
    if head.startswith(b"\x0a") and head[8:9] != b"{" and path.suffix != ".safetensors":
        return _tokenizer(path, path.read_bytes())
    dicts, metadata, pickled = read_tensors(path)
    settings = _settings(path)
    model = model_in(path, dicts, ema)
    names = frozenset(name for tensors in dicts.values() for name in tensors)
    classes = (*_strings(settings.get("_class_name")), *_pipeline(path))
    return Weights(path, model, names, metadata, settings, classes, pickled)


def _head(path: Path) -> bytes:
    """How a file begins. Raises BadInput for what can't be weights, OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if what := mistaken(path, head):
        raise BadInput([what])
    return head


def read_tensors(
    path: Path,
) -> tuple[Mapping[tuple[str, ...], Mapping[str, Tensor]], Mapping[str, str], bool]:
    """Opens a file of tensors, of whichever format.

    Args:
        path: The file.

    Returns:
        The tensors by name, for each dict in it that has any; the metadata of a safetensors file;
        whether it is a pickle.

    Raises:
        BadInput: It is something else, or damaged.
        OSError: It can't be read.
    """
    head = _head(path)
    pickled = head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and not pickled):
        tensors, metadata = read_safetensors(path)
        return {(): tensors}, metadata, False
    if not pickled:
        raise BadInput([f"{path} is no safetensors, torch or sentencepiece file (wrong magic)."])
    return read_torch(path), {}, True


def _tokenizer(path: Path, content: bytes) -> Tokenizer:
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(content)
    except (RuntimeError, ValueError):  # a parsing error, or of an error message in bytes
        raise BadInput([f"{path} isn't a sentencepiece model, or is damaged."]) from None
    return Tokenizer(path, content, pieces.GetPieceSize())


def _settings(weights: Path) -> dict[str, Any]:
    """What the `config.json` beside a weight file holds; nothing without one. Raises BadInput."""
    path = weights.with_name("config.json")
    return read_json(path) if path.is_file() else {}


def _pipeline(weights: Path) -> tuple[str, ...]:
    """Classes of the diffusers pipeline that a weight file is in: its own, and its folder's."""
    path = weights.parent.parent / "model_index.json"
    if not path.is_file():
        return ()
    index = read_json(path)
    mine = index.get(weights.parent.name)
    return (*_strings(index.get("_class_name")), *_strings(mine))


def _strings(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(one for one in values if isinstance(one, str))


def read_json(path: Path) -> dict[str, Any]:
    """Settings in a file. Raises BadInput, OSError."""
    content = path.read_bytes()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        what = None if content.startswith((b"{", b"[")) else mistaken(path, content[:HEAD])
        raise BadInput([what or f"{path} is no JSON: {error}"]) from None
    if not isinstance(found, dict):
        raise BadInput([f"{path} holds no settings."])
    return found


def _read_index(path: Path) -> dict[str, str]:
    """The shard of every tensor. Raises BadInput."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in places.values()
    ):
        raise BadInput([f"{path} is no index: it must name a file beside it for each tensor."])
    return places


def _misplaced(index: Path, places: Mapping[str, str], weights: list[Weights]) -> list[str]:
    """Tensors that aren't in the shard that the index names."""
    opened = {file.path: file.names for file in weights}
    return [
        f"{name} isn't in {index.with_name(shard)}, where {index.name} has it."
        for name, shard in places.items()
        if name not in opened.get(index.with_name(shard), {name})
    ]
