"""The record of a run: everything needed to repeat it, and what was measured, as JSON."""

import dataclasses
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tt_jax import __version__
from tt_jax.files import atomic
from tt_jax.overview import NUMBERS, Overview, overview
from tt_jax.video import Video


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide on the numbers."""
    own = {"tt_jax": __version__, "python": platform.python_version()}
    return own | {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}


def device() -> dict[str, Any]:
    """The device that the run used."""
    first = jax.devices()[0]
    return {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}


def settings(value: Any) -> dict[str, Any]:
    """Settings as a record holds them.

    Args:
        value: a strategy, TokenTrim, or another dataclass.

    Returns:
        The name of its class, and its fields; a field that is such a dataclass likewise.
    """
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    held = {name: settings(v) for name, v in fields.items() if dataclasses.is_dataclass(v)}
    return {"name": type(value).__name__, **fields, **held}


def chunks(video: Video | Overview, sample: int) -> list[dict[str, Any]]:
    """Tells what TokenTrim saw and did in each chunk.

    Args:
        video: whose.
        sample: which of the batch.

    Returns:
        One row per chunk: its number from 1, its seconds, and TokenTrim's numbers; "dropped" is the
        share of the tokens that an intervention dropped. What has no value is None.
    """
    numbers = overview(video).numbers
    return [
        {
            "chunk": i + 1,
            "start": start / video.fps,
            "end": end / video.fps,
            **measured(numbers, sample, i),
        }
        for i, (start, end) in enumerate(zip(video.starts, video.ends, strict=True))
    ]


def measured(numbers: Mapping[str, np.ndarray], sample: int, chunk: int) -> dict[str, Any]:
    """What TokenTrim saw and did in one chunk.

    Args:
        numbers: as in `Overview.numbers`.
        sample: which of the batch.
        chunk: which of the video.

    Returns:
        Numbers by name, as in `chunks`.
    """
    return {name: value(numbers[name][sample, chunk]) for name in (*NUMBERS, "dropped")}


def switches(video: Video | Overview, sample: int) -> list[dict[str, Any]]:
    """Tells where the prompt changed.

    Args:
        video: whose.
        sample: which of the batch.

    Returns:
        One row for each prompt but the first: the number, from 1, and the second of the chunk that
        it begins with, its words (None for embeddings), and how the cache was switched.
    """
    return [
        {
            "chunk": place + 1,
            "start": video.starts[place] / video.fps,
            "prompt": change.words[sample] if change.words else None,
            "how": change.how,
        }
        for place, change in sorted(video.changes.items())
    ]


def value(number: Any) -> float | bool | None:
    """A number of numpy as one of Python; None for NaN and the infinities."""
    number = np.asarray(number).item()
    return number if math.isfinite(number) else None


def save(path: Path, record: dict[str, Any], *, new: bool = False) -> None:
    """Writes a record as JSON, whole or not at all.

    Args:
        path: the file.
        record: what to write.
        new: refuse to replace a file of that name.

    Raises:
        FileExistsError: `new`, and there is something of that name.
    """
    with atomic(path, new=new) as aside:
        text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False)
        aside.write_text(text + "\n", encoding="utf-8")


def samples(
    videos: Mapping[str, Video | Overview],
    files: Sequence[Path],
    alone: Mapping[str, Sequence[Path]] | None = None,
) -> list[dict[str, Any]]:
    """What was measured of each sample.

    Args:
        videos: of each run, by its label.
        files: of each sample, the video that was written.
        alone: by a run's label, the videos of each sample that show it alone.

    Returns:
        For each sample the name of its video's file, of the runs' own ("alone", by label; none for
        a single run), and by label the run's chunks.
    """
    alone = alone or {}
    return [
        {
            "video": file.name,
            "alone": {label: paths[i].name for label, paths in alone.items()},
            **{label: chunks(video, i) for label, video in videos.items()},
        }
        for i, file in enumerate(files)
    ]
