"""A model's folder to one whose weights have 8 bits."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert.folder import atomic_folder, link_tree
from convert.problems import BadInput
from tt_jax.checkpoint import (
    HELD,
    inside,
    load_arrays,
    quantised,
    read_manifest,
    read_stored,
    save_arrays,
    shapes,
    write_stored,
)
from tt_jax.errors import ModelError

ROUNDED = ("dit", "text")  # parts with linear layers


def to_bits(model: Path, folder: Path, quantize: str) -> list[str]:
    """Writes a model's folder anew, its transformer and text encoder quantised.

    Args:
        model: The model's folder; parts that it shares with another folder are written too.
        folder: A new folder.
        quantize: "int8".

    Returns:
        What was done, in lines.

    Raises:
        BadInput: The model can't be read or quantised, or `folder` exists.
        OSError: Writing failed.
    """
    if folder.exists():
        raise BadInput([f"{folder} exists: give a folder that doesn't."])
    done = []
    try:
        stored, manifest = read_stored(model), read_manifest(model)
        parts = dict(stored.parts)
        for part in ROUNDED:
            if part in parts:
                if parts[part].quantize is not None:
                    raise BadInput([f"{model} is quantised already: nothing is left to do."])
                parts[part] = dataclasses.replace(parts[part], quantize=quantize)
        with atomic_folder(folder) as aside:
            for part in [*HELD, "tokenizer.model", "vocabulary.json"]:
                if part not in ROUNDED and inside(model, part).exists():
                    link_tree(inside(model, part), aside / part)
            for part in ROUNDED:
                if part in parts:
                    record: dict[str, Any] = {}
                    arrays = _arrays(model, part, stored.parts[part], parts[part], record)
                    save_arrays(aside, part, arrays)
                    size = sum(x["bytes"] for x in record.values())
                    done.append(f"{part}: {quantize}, {size / 1e9:.2f} GB")
                    if manifest:
                        manifest["parts"][part] = {
                            **manifest["parts"].get(part, {}), "quantize": quantize,
                            "arrays": record,
                        }  # fmt: skip
            if manifest:
                (aside / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
            write_stored(aside, dataclasses.replace(stored, parts=parts, shared=None))
    except (ModelError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput([f"{model} can't be quantised: {error}"]) from None
    return done


def _arrays(
    model: Path, part: str, before: Any, after: Any, record: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """The part's quantised arrays; each is entered into `record`."""
    stored = load_arrays(model, part, shapes(part, before))
    for path, array in quantised(shapes(part, after), stored):
        array = np.ascontiguousarray(array)
        record[path] = {
            "shape": array.shape, "dtype": array.dtype.name, "bytes": array.nbytes,
            "sha256": hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest(),
        }  # fmt: skip
        yield path, array
