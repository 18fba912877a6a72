"""The record of a run: everything needed to repeat it, and what was measured, as JSON."""

import dataclasses
import json
import math
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tt_jax import __version__
from tt_jax.files import atomic
from tt_jax.pipeline import Video

NUMBERS = ("severity", "accepted_severity", "threshold", "triggered", "kept_fraction")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide on the numbers."""
    own = {"tt_jax": __version__, "python": platform.python_version()}
    return own | {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy")}


def device() -> dict[str, Any]:
    """The device that the run used."""
    first = jax.devices()[0]
    return {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}


def settings(value: Any) -> dict[str, Any]:
    """The class and fields of a strategy or of TokenTrim."""
    return {"name": type(value).__name__, **dataclasses.asdict(value)}


def chunks(video: Video, sample: int) -> list[dict[str, Any]]:
    """One row per chunk of a sample: its number from 1, its seconds, and TokenTrim's numbers.

    `dropped` is the share of the tokens that an intervention dropped. What has no value is None.
    """
    record = {name: np.asarray(getattr(video.rollout, name))[sample] for name in NUMBERS}
    dropped = (np.asarray(video.rollout.pruned)[sample] > 0).mean(axis=(1, 2))
    ends = [*video.starts[1:], video.frames.shape[1]]
    return [
        {
            "chunk": i + 1,
            "start": start / video.fps,
            "end": end / video.fps,
            **{name: value(record[name][i]) for name in NUMBERS},
            "dropped": value(dropped[i]),
        }
        for i, (start, end) in enumerate(zip(video.starts, ends, strict=True))
    ]


def value(number: Any) -> float | bool | None:
    """A number of numpy as one of Python; None for NaN and the infinities."""
    number = np.asarray(number).item()
    return number if math.isfinite(number) else None


def save(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, whole or not at all."""
    with atomic(path) as aside:
        aside.write_text(json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def samples(videos: dict[str, Video], files: Sequence[Path]) -> list[dict[str, Any]]:
    """For each sample its video's file and, by the run's label, its chunks."""
    return [
        {"video": file.name, **{label: chunks(video, i) for label, video in videos.items()}}
        for i, file in enumerate(files)
    ]
