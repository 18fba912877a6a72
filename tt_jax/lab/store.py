"""A run's folder: finished cells, each whole or not at all, and the tables made of them.

FOLDER/experiment.toml   the file that was run
FOLDER/cells/ID.json     one finished cell; its ID stands for all that decides on its numbers
FOLDER/results.csv       what was measured, tidy
FOLDER/timings.csv       seconds of wall time of each cell, never the same twice, so kept apart; and
                         what a chunk costs by its shapes (lab.cost)
FOLDER/record.json       versions, device, models
"""

import csv
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tt_jax.checkpoint import PARTS, inside
from tt_jax.files import atomic
from tt_jax.lab.cost import Cost
from tt_jax.lab.observe import COLUMNS, Row
from tt_jax.lab.spec import Cell

FILE, RESULTS, TIMINGS, RECORD = "experiment.toml", "results.csv", "timings.csv", "record.json"
KEYS = ("stress", "host", "arm", "seconds", "seed", "prompt", "regime")
TIMING_KEYS = ("stress", "host", "arm", "seconds", "seed", "first")
COSTS = tuple(field.name for field in dataclasses.fields(Cost))


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished cell.

    Attributes:
        seconds: wall time.
        rows: of each of its videos (`observe`).
        cost: what a chunk costs, by the names in `COSTS`.
    """

    seconds: float
    rows: list[list[Row]]
    cost: dict[str, int] = dataclasses.field(default_factory=dict)


def identity(cell: Cell, origin: Mapping[str, Any]) -> str:
    """The name of a cell's file: a digest of all that decides on its numbers, and of nothing else.

    Args:
        cell: what is made.
        origin: what the cell doesn't say, as JSON: its model's digest, versions, device.

    Returns:
        A name without suffix.
    """
    settings = dataclasses.asdict(cell) | {"origin": dict(origin)}
    settings["arm"].pop("name")
    if settings["arm"]["cache"] is None:  # so are the names of cells from before there were any
        settings["arm"].pop("cache")
    settings["stress"].pop("name")
    settings["stress"].pop("model")  # wherever it lies
    if cell.arm.trim.statistics == "moments":  # as all were before there was a choice
        del settings["arm"]["trim"]["statistics"]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def model_digest(folder: Path) -> str:
    """A digest of the files that a model consists of; what else lies beside them doesn't count."""
    digest = hashlib.sha256()
    files = {name: inside(folder, name) for name in ("config.json", "tokenizer.model")}
    for part in PARTS:
        place = inside(folder, part)
        files |= {f"{part}/{x.relative_to(place)}": x for x in place.rglob("*") if x.is_file()}
    for name, path in sorted(files.items()):
        digest.update(name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_writable(folder: Path) -> None:
    """Whether something can be written to a folder.

    Args:
        folder: which needn't exist yet.

    Raises:
        ValueError: nothing can.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"{folder} can't be written: {error.strerror}.") from None


def path_of(folder: Path, name: str) -> Path:
    """A cell's file.

    Args:
        folder: of the run.
        name: the cell's (`identity`).

    Returns:
        Its path.
    """
    return folder / "cells" / f"{name}.json"


def write_cell(folder: Path, name: str, finished: Finished) -> None:
    """Keeps a finished cell, whole or not at all.

    Args:
        folder: of the run.
        name: the cell's (`identity`).
        finished: what to keep.
    """
    path = path_of(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as aside:
        aside.write_text(json.dumps(dataclasses.asdict(finished), allow_nan=False))


def read_cell(folder: Path, name: str) -> Finished | None:
    """A cell that was kept.

    Args:
        folder: of the run.
        name: the cell's (`identity`).

    Returns:
        What was kept; None if it isn't finished.
    """
    path = path_of(folder, name)
    return Finished(**json.loads(path.read_text())) if path.is_file() else None


def write_tables(folder: Path, cells: Iterable[tuple[Cell, Finished]]) -> None:
    """Writes `results.csv` and `timings.csv` of the finished cells, in their order.

    Args:
        folder: of the run.
        cells: what is finished.
    """
    results, timings = [], []
    for cell, finished in cells:
        keys = [cell.stress.name, cell.host, cell.arm.name, cell.seconds, cell.seed]
        costs = [finished.cost.get(name, "") for name in COSTS]
        timings.append([*keys, cell.first, finished.seconds, *costs])
        for prompt, rows in zip(cell.prompts, finished.rows, strict=True):
            results += [
                [*keys, prompt.text, prompt.regime, *(row.get(name, "") for name in COLUMNS)]
                for row in rows
            ]
    _write_csv(folder / RESULTS, [*KEYS, *COLUMNS], results)
    _write_csv(folder / TIMINGS, [*TIMING_KEYS, "wall", *COSTS], timings)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """A table's rows.

    Args:
        path: of the table.

    Returns:
        For each row its values by the names in the first one.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run an experiment into that folder first.")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
