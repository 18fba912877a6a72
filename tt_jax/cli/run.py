"""What `tt-jax generate` and `tt-jax compare` do: checks, then the runs and their files."""

import argparse
import dataclasses
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from tt_jax import cache, pipeline, records
from tt_jax.checkpoint import default_dtype, find, read_config
from tt_jax.cli.console import say
from tt_jax.cli.options import PLAIN, TRIMMED, UNWARPED
from tt_jax.cli.output import Output, plan
from tt_jax.cli.progress import Tally, count, watch
from tt_jax.media.read import read_clip
from tt_jax.media.write import tile, write_video
from tt_jax.models.configs import FPS, RolloutConfig
from tt_jax.planning import memory
from tt_jax.plots import drift as plots
from tt_jax.plots import grid, style
from tt_jax.prompts import check_prompts, encode_prompts
from tt_jax.scenes import Changes, read_file, read_script
from tt_jax.strategies.presets import Preset, preset
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.trim.tokentrim import TokenTrim
from tt_jax.video import Video

SECONDS = 30.0  # of a video, unless something else is asked for


def given(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Those of the options that were given."""
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def configuration(
    name: str, policy: str | None, args: argparse.Namespace, model: RolloutConfig
) -> Preset:
    """What a run is made with: a preset or `PLAIN` or `TRIMMED`, and what was given beside it.

    policy: of the cache. model: how the model is rolled out. Raises ValueError.
    """
    base = {PLAIN: model.strategy, TRIMMED: f"{model.strategy}+tokentrim-no-flowmo"}
    name = base.get(name, name)
    spans = given(args, ["window", "sink"])
    if (spans or policy) and name.startswith("rolling-forcing"):
        raise ValueError(
            "Rolling Forcing has a window and an anchor of its own: give neither, and no cache."
        )
    if spans and policy:
        raise ValueError("a cache policy has a window and sinks of its own: give either.")
    if policy:
        spans = {"cache": cache.parse(policy, model.window)}
    levels = given(args, ["steps", "shift"])
    if levels.get("shift") == UNWARPED:
        levels["shift"] = None
    strategy, trim = preset(name, model, **levels, **spans)
    acts = trim.retries > 0
    trim = dataclasses.replace(trim, **given(args, trim_options()))
    return Preset(strategy, trim if acts else dataclasses.replace(trim, retries=0))


def trim_options() -> list[str]:
    """Names of TokenTrim's settings."""
    return [field.name for field in dataclasses.fields(TokenTrim)]


def configurations(
    args: argparse.Namespace,
    presets: Sequence[str],
    caches: Sequence[str | None],
    model: RolloutConfig,
) -> dict[str, Preset]:
    """The configuration of each run, each preset with each cache, by a label that says what runs
    differ in. Raises ValueError for options that contradict each other."""
    runs = {}
    for policy in caches:
        for name in presets:
            differ = [policy or ""] if len(caches) > 1 else []
            differ += [name] if len(presets) > 1 or not differ else []
            runs[" ".join(differ)] = configuration(name, policy, args, model)
    idle = list(given(args, trim_options()))
    if idle and not any(run.trim.retries for run in runs.values()) and args.retries != 0:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise ValueError(f"TokenTrim doesn't act under {presets[-1]}, but {options} is given.")
    return runs


def script_of(args: argparse.Namespace) -> tuple[Changes, float]:
    """The prompts and the video's length. Raises ValueError or OSError."""
    if args.script is None:
        script, length = read_script(args.prompt)
    else:
        script, length = read_file(args.script), None
    check_prompts([change.prompt for change in script])
    seconds = length if args.seconds is None else args.seconds
    return script, SECONDS if seconds is None else seconds


def request(
    args: argparse.Namespace, presets: Sequence[str], caches: Sequence[str | None]
) -> Callable[[], None]:
    """Checks a request for each preset with each cache; the work makes them and writes files."""
    script, seconds = script_of(args)
    prompts = [change.prompt for change in script]
    frames = pipeline.frame_count(seconds)
    config, kind = read_config(find(args.model), vae=args.vae)
    runs = configurations(args, presets, caches, config.rollout)
    labels = list(runs)
    height, width = args.size or config.size
    pipeline.check_size(config, (height, width))
    several = len(labels) > 1
    planned = plan(
        args.out, prompts[0], "compare" if several else "video", samples=args.batch,
        alone=labels if several else ()
    )  # fmt: skip
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
    texts = encode_prompts(args.model, prompts, dtype)
    encoded = [
        change._replace(prompt=jnp.repeat(text[None], args.batch, 0), words=(words,) * args.batch)
        for change, text, words in zip(script, texts, prompts, strict=True)
    ]
    pipe = pipeline.load(
        args.model, dtype, allow_bidirectional=args.allow_bidirectional, text=False, vae=args.vae
    )
    streams = {
        label: pipe.stream(
            encoded, seconds=seconds, seed=args.seed, strategy=run.strategy, trim=run.trim,
            size=(height, width), initial=initial,
        )
        for label, run in runs.items()
    }  # fmt: skip
    record = {
        "command": args.command,
        "prompt": prompts[0],
        "script": [change[:3] for change in script] if len(script) > 1 else None,
        "seconds": seconds,
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
        "vae": args.vae,
        "versions": records.versions(),
        "device": records.device(),
    }
    loading = time.perf_counter() - started

    def work() -> None:
        timings: dict[str, Any] = {"loading": loading}
        videos, tallies = {}, []
        for label, stream in streams.items():
            tallies.append(Tally(label, frames, FPS, runs[label].trim.retries > 0))
            videos[label], timings[label] = watch(stream, tallies[-1])

        def whole(output: Output) -> dict[str, Any]:
            own = {label: output.videos(label) for label in output.alone}
            samples = records.samples(videos, output.videos(), own)
            # Of the first sample: all have the same prompts.
            switches = {label: records.switches(video, 0) for label, video in videos.items()}
            return record | {"switches": switches, "timings": timings, "samples": samples}

        # First, so that nothing measured is lost whatever happens to the rest.
        output = planned.claim(whole)
        save_videos(output, videos)
        note = [args.model, f"seed {args.seed}", *notes(list(runs.values()))]
        acted = runs[labels[-1]].trim.retries > 0
        title = " | ".join(prompts)
        for i, file in enumerate(output.pictures()):
            if len(videos) > 2:
                picture = grid.picture(videos, title, " · ".join(note), sample=i)
            else:
                picture = plots.picture(videos, title, " · ".join(note), acted=acted, sample=i)
            style.save(picture, file)
        conclude(output, tallies)

    return work


def conclude(output: Output, tallies: list[Tally]) -> None:
    """Says what was made: the videos on stdout, the rest beside it."""
    for tally in tallies:
        chunks = f"{tally.abnormal} of {count(tally.chunks * output.samples, 'chunk')}"
        acted = f"intervened in {chunks}" if tally.acts else f"{chunks} abnormal, none made again"
        made = f"{tally.wanted / tally.fps:.1f} s of video in {tally.latest:.1f} s"
        say(f"{tally.label}: {acted}; {made}.")
    for label in output.alone:
        say(f"{label} alone: {', '.join(map(str, output.videos(label)))}")
    say(f"picture: {', '.join(map(str, output.pictures()))}; record: {output.record}")
    print(*output.videos(), sep="\n")


def notes(runs: Sequence[Preset]) -> list[str]:
    """The settings that a picture's note gives: those of one or two runs' last, of more what they
    share."""
    trim = runs[-1].trim
    said = [f"p {trim.p:g}, λ {trim.lam:g}, warm-up {trim.warmup}"]
    hosts = []
    for strategy, _ in runs[-1:] if len(runs) <= 2 else runs:
        own = isinstance(strategy, SelfForcing)
        hosts.append(cache.describe(strategy.policy) if own else "Rolling Forcing")
    return [hosts[0], *said] if len(set(hosts)) == 1 else said


def save_videos(output: Output, videos: dict[str, Video]) -> None:
    """Writes the only run's videos, or several runs in a grid and each alone."""
    for label in output.alone:
        for path, frames in zip(output.videos(label), videos[label].frames, strict=True):
            write_video(path, frames)
    for i, path in enumerate(output.videos()):
        frames = [video.frames[i] for video in videos.values()]
        write_video(path, frames[0] if len(frames) == 1 else tile(frames, list(videos)))


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
