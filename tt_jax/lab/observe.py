"""What is measured of a cell's videos: tidy rows per second, per chunk and per video."""

import math
from typing import Any

import numpy as np

from tt_jax.evaluate import chunks as field
from tt_jax.evaluate import measures
from tt_jax.lab import truth
from tt_jax.lab.make import RECORD, Made
from tt_jax.lab.spec import Cell
from tt_jax.models.configs import FPS
from tt_jax.shapes import checker

# One row of the CSV is one second, one chunk or one whole video, as `kind` says; it fills its own
# kind's columns. `at` is the second at which it begins.
SECOND = (*truth.ERRORS, "moving", "place_error", *measures.CURVES)
CHUNK = (*RECORD, "dropped", "on_object", "jump", "sink_distance")
VIDEO = ("detected", "precision", "recall", "recovery")
COLUMNS = ("kind", "at", *SECOND, *CHUNK, *VIDEO)

Row = dict[str, Any]


def observe(cell: Cell, made: Made) -> list[list[Row]]:
    """What is measured of a cell's videos.

    Args:
        cell: what was asked for.
        made: its videos, and what was recorded of them.

    Returns:
        For each video its rows; columns that have no value are left out.
    """
    return [
        _video(cell, made, sample, prompt.text, bool(prompt.regime))
        for sample, prompt in enumerate(cell.prompts)
    ]


def _video(cell: Cell, made: Made, sample: int, prompt: str, known: bool) -> list[Row]:
    frames = made.frames[sample]
    record = {name: values[sample] for name, values in made.record.items()}
    curves = dict(measures.measure(frames, FPS).curves)
    chunks = {name: record[name] for name in RECORD}
    chunks["dropped"] = record["dropped"].mean(axis=1)
    chunks["jump"] = field.jumps(frames, made.starts, FPS)
    chunks["sink_distance"] = field.sink_distances(frames, made.starts)
    video = {}
    if known:
        seen = checker.measure(frames)
        curves |= truth.curves(seen, prompt)
        chunks["on_object"] = _on_object(made, seen, record["dropped"])
    if made.planted is not None:
        after = slice(made.planted.chunk, made.planted.chunk + made.planted.chunks)
        precision, recall = truth.precision_recall(record["dropped"][after], made.planted.tokens)
        video = {
            "detected": record["triggered"][after].any(),
            "precision": precision,
            "recall": recall,
        }
        if known:
            plant = cell.stress.plant
            assert plant is not None  # it is what was planted
            error = truth.place_error(frames, prompt, plant.rows, plant.columns, made.grid)
            seconds = len(error) // FPS
            curves["place_error"] = error[: seconds * FPS].reshape(seconds, FPS).mean(axis=1)
            video["recovery"] = truth.recovery(error, made.starts[made.planted.chunk])
    return [
        *_rows("second", range(len(frames) // FPS), curves),
        *_rows("chunk", [start / FPS for start in made.starts], chunks),
        *_rows("video", [0] if video else [], {name: [value] for name, value in video.items()}),
    ]


def _on_object(made: Made, seen: checker.Measurement, dropped: np.ndarray) -> list[float]:
    """Per chunk, the share of the tokens dropped that lie on an object in it or the chunk before.

    NaN where nothing was dropped.
    """
    ends = [*made.starts[1:], len(seen.background)]
    shares = []
    for chunk, end in enumerate(ends):
        lost = dropped[chunk].reshape(made.grid)
        frames = slice(made.starts[max(chunk - 1, 0)], end)
        share = np.nan
        if lost.any():
            share = truth.object_tokens(seen, frames, made.grid)[lost].mean()
        shares.append(share)
    return shares


def _rows(kind: str, at: Any, columns: dict[str, Any]) -> list[Row]:
    """One row for each place in the columns."""
    rows = []
    for index, begin in enumerate(at):
        row: Row = {"kind": kind, "at": number(begin)}
        for name, values in columns.items():
            value = number(values[index])
            if value is not None:
                row[name] = value
        rows.append(row)
    return rows


def number(value: Any) -> float | int | None:
    """A number with six digits, a truth value as 0 or 1; None for what is not finite."""
    value = float(value)
    if not math.isfinite(value):
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short
