"""What `tt-jax generate` and `tt-jax compare` do: checks, progress, and the files of the runs."""

import argparse
import dataclasses
import hashlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tt_jax import pipeline, records
from tt_jax.checkpoint import default_dtype, find, read_config
from tt_jax.cli.options import PLAIN, TRIMMED
from tt_jax.media.read import read_clip
from tt_jax.media.write import side_by_side, write_video
from tt_jax.models.configs import FPS, RolloutConfig
from tt_jax.pipeline import Chunk, Video
from tt_jax.planning import memory
from tt_jax.plots import drift as plots
from tt_jax.plots import style
from tt_jax.prompts import check_prompts, encode_prompts
from tt_jax.strategies.presets import Preset, preset
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.trim.tokentrim import TokenTrim


def configuration(label: str, args: argparse.Namespace, model: RolloutConfig) -> Preset:
    """What a run is made with: a preset or `PLAIN` or `TRIMMED`, and what was given beside it.

    model: how the model is rolled out. Raises ValueError.
    """
    base = {PLAIN: "self-forcing", TRIMMED: "self-forcing+tokentrim-no-flowmo"}
    strategy, trim = preset(base.get(label, label), model)
    given = {name: getattr(args, name) for name in ("window", "sink")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and isinstance(strategy, RollingForcing):
        raise ValueError("Rolling Forcing has a window and an anchor of its own: give neither.")
    fields = [field.name for field in dataclasses.fields(TokenTrim)]
    trims = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    acts = trim.retries > 0
    trim = dataclasses.replace(trim, **trims)
    return Preset(
        dataclasses.replace(strategy, **given),
        trim if acts else dataclasses.replace(trim, retries=0),
    )


def request(args: argparse.Namespace, labels: list[str]) -> Callable[[], None]:
    """Checks a request for one run per label; the work makes them and writes the files."""
    check_prompts([args.prompt])
    frames = pipeline.frame_count(args.seconds)
    if len(set(labels)) < len(labels):
        raise ValueError("a comparison needs two different presets.")
    config, kind = read_config(find(args.model))
    runs = {label: configuration(label, args, config.rollout) for label in labels}
    height, width = args.size or config.size
    pipeline.check_size(config, (height, width))
    path = output(args.out, args.prompt, "compare" if len(labels) > 1 else "video")
    initial = None
    if args.init is not None:
        initial = read_initial(args.init, (height, width), frames)
    dtype = default_dtype()
    needs = [
        memory.estimate(
            config, dtype, run.strategy, size=(height, width), frames=frames, batch=args.batch
        )
        for run in runs.values()
    ]
    most = max(needs, key=lambda memory: memory.device)
    memory.check(dataclasses.replace(most, host=most.host * len(runs)))

    started = time.perf_counter()
    text = jnp.repeat(encode_prompts(args.model, args.prompt, dtype), args.batch, axis=0)
    pipe = pipeline.load(
        args.model, dtype, allow_bidirectional=args.allow_bidirectional, text=False
    )
    streams = {
        label: pipe.stream(
            text, seconds=args.seconds, seed=args.seed, strategy=run.strategy, trim=run.trim,
            size=(height, width), initial=initial,
        )
        for label, run in runs.items()
    }  # fmt: skip
    record = {
        "command": args.command,
        "prompt": args.prompt,
        "seconds": args.seconds,
        "frames": frames,
        "fps": FPS,
        "size": [height, width],
        "seed": args.seed,
        "batch": args.batch,
        "dtype": np.dtype(dtype).name,
        "initial": args.init and describe(args.init),
        "strategy": {label: records.settings(run.strategy) for label, run in runs.items()},
        "trim": {label: records.settings(run.trim) for label, run in runs.items()},
        "model": {"name": args.model, "kind": kind, "config": dataclasses.asdict(config)},
        "versions": records.versions(),
        "device": records.device(),
    }
    loading = time.perf_counter() - started

    def work() -> None:
        timings: dict[str, Any] = {"loading": loading}
        videos = {}
        for label, stream in streams.items():
            videos[label], timings[label] = watch(stream, label)
        path.parent.mkdir(parents=True, exist_ok=True)
        files = save_videos(path, videos)
        note = " · ".join([args.model, f"seed {args.seed}", *notes(runs[labels[-1]])])
        for i, file in enumerate(files):
            acted = runs[labels[-1]].trim.retries > 0
            picture = plots.picture(videos, args.prompt, note, acted=acted, sample=i)
            style.save(picture, file.with_suffix(".png"))
        samples = records.samples(videos, files)
        records.save(path.with_suffix(".json"), record | {"timings": timings, "samples": samples})
        print(*files, sep="\n")

    return work


def notes(run: Preset) -> list[str]:
    """The settings that a picture's note gives."""
    strategy, trim = run
    host = "Rolling Forcing"
    if isinstance(strategy, SelfForcing):
        host = f"window {strategy.window}, sink {strategy.sink}"
    return [host, f"p {trim.p:g}, λ {trim.lam:g}, warm-up {trim.warmup}"]


def watch(stream: Iterator[Chunk], label: str) -> tuple[Video, dict[str, float]]:
    """Collects a stream under a progress bar; returns the video and its timings in seconds."""
    console = Console(stderr=True)
    style = "{task.description}", "{task.fields[numbers]}"
    bar = Progress(
        TextColumn(style[0]), BarColumn(), MofNCompleteColumn(), TextColumn(style[1]),
        TimeElapsedColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    started, first, triggers = time.perf_counter(), 0.0, 0
    with bar:
        task = bar.add_task(label, total=None, numbers="compiling")

        def show(chunk: Chunk) -> None:
            nonlocal first, triggers
            first = first or time.perf_counter() - started
            triggers += int(chunk.rollout.triggered.sum())
            highest = float(chunk.rollout.severity.max())
            numbers = f"severity {highest:.3f}, {triggers} triggers"
            bar.update(task, total=chunk.total, advance=1, numbers=numbers)

        made = Video.collect(stream, show)
    return made, {"first_chunk": first, "all_chunks": time.perf_counter() - started}


def save_videos(path: Path, videos: dict[str, Video]) -> list[Path]:
    """Writes one file per sample: the only run's video, or two runs side by side."""
    (left, first), *others = videos.items()
    if not others:
        return first.save(path)
    right, second = others[0]
    for i, file in enumerate(first.paths(path)):
        both = side_by_side(first.frames[i], second.frames[i], (left, right))
        write_video(file, both)
    return first.paths(path)


def output(out: Path | None, prompt: str, name: str) -> Path:
    """The video's path. Raises ValueError if nothing can be written there."""
    if out is None:
        words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:50].rstrip("-")
        out = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{words}"
    path = out if out.suffix == ".mp4" and not out.is_dir() else out / f"{name}.mp4"
    there = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"{path.parent} can't be written: {error.strerror}.") from None
    return path


def read_initial(path: Path, size: tuple[int, int], frames: int) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads what a video of `frames` frames starts from, and says what was done to it."""
    clip = read_clip(path, size, frames)
    if len(clip.frames) == frames:
        raise ValueError(f"{path} fills all {frames} frames: ask for more seconds than it has.")
    done = []
    if clip.source != size:
        source = f"{clip.source[1]}x{clip.source[0]}"
        done.append(f"resized and centre-cropped from {source} to {size[1]}x{size[0]}")
    if clip.fps not in (None, FPS):
        done.append(f"brought from {clip.fps:g} to {FPS} frames a second")
    if done:
        warnings.warn(f"{path} was {' and '.join(done)}.", stacklevel=2)
    return clip.frames


def describe(path: Path) -> dict[str, str]:
    """A file's name and SHA-256, for the record."""
    with path.open("rb") as file:
        return {"file": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
