"""What `tt-jax generate` and `tt-jax compare` are asked for: checked, and loaded."""

import argparse
import dataclasses
import hashlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import DTypeLike, UInt8

from tt_jax import cache, pipeline, records
from tt_jax.checkpoint import default_dtype, find, inside, read_config
from tt_jax.cli import devices, resume
from tt_jax.cli.making import Job, make
from tt_jax.cli.options import PLAIN, TRIMMED, UNWARPED
from tt_jax.cli.output import Output, plan, word, writable
from tt_jax.cli.take import latest
from tt_jax.media.read import read_clip
from tt_jax.models.configs import FPS, ModelConfig, RolloutConfig
from tt_jax.planning import memory
from tt_jax.prompts import check_prompts, encode_prompts
from tt_jax.scenes import Changes, read_file, read_script
from tt_jax.strategies.presets import Preset, preset
from tt_jax.strategies.switch import way
from tt_jax.trim.tokentrim import TokenTrim

SECONDS = 30.0  # of a video, unless something else is asked for


def given(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Those of the options that were given."""
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def configuration(
    name: str, policy: str | None, args: argparse.Namespace, model: RolloutConfig
) -> Preset:
    """What a run is made with.

    Args:
        name: a preset, `PLAIN` or `TRIMMED`.
        policy: of the cache, in text; None for the model's own.
        args: the command's, some of which change the preset.
        model: how the model is rolled out.

    Returns:
        The strategy and TokenTrim's settings.

    Raises:
        ValueError: options contradict each other or the preset.
    """
    host = args.strategy or model.strategy
    base = {PLAIN: host, TRIMMED: f"{host}+tokentrim-no-flowmo"}
    if args.strategy and name not in base:
        raise ValueError(f"the preset {name} says the strategy: leave --strategy out.")
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
    levels = given(args, ["steps", "shift", "chunk"])
    if "chunk" in levels and name.startswith("rolling-forcing"):
        raise ValueError("Rolling Forcing's blocks have 3 latent frames: leave --chunk out.")
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
    """The configuration of each run: each preset with each cache.

    Args:
        args: the command's.
        presets: names, as `configuration` takes them.
        caches: policies in text, None for the model's own.
        model: how the model is rolled out.

    Returns:
        The configurations, by labels that say what runs differ in.

    Raises:
        ValueError: options contradict each other, or have no effect.
    """
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


def switched(script: Changes, how: str | None) -> Changes:
    """A script whose prompts switch the cache as --switch says, where they don't say it.

    Args:
        script: prompts and when they begin.
        how: the way of switching that --switch says, if any.

    Returns:
        The script, its first prompt as it was.
    """
    first, *later = script
    return (first, *(change._replace(how=change.how or how) for change in later))


def script_of(args: argparse.Namespace) -> tuple[Changes, float]:
    """The prompts and the video's length.

    Args:
        args: the command's.

    Returns:
        The prompts, and seconds of video.

    Raises:
        ValueError: the script or a prompt can't be, or --switch has nothing to switch.
        OSError: the script's file can't be read.
    """
    if args.script is None:
        script, length = read_script(args.prompt)
    else:
        script, length = read_file(args.script), None
    if args.switch is not None and len(script) == 1:
        raise ValueError("--switch needs a second prompt: give scenes, 'a cat [10s] | a dog [5s]'.")
    script = switched(script, args.switch)
    check_prompts([change.prompt for change in script])
    seconds = length if args.seconds is None else args.seconds
    return script, SECONDS if seconds is None else seconds


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was asked for of every video, checked.

    Attributes:
        args: the command's.
        config: sizes of the model.
        kind: what it was trained for.
        runs: by their labels.
        size: height and width.
        dtype: of weights and cache.
        initial: frames to start from.
        mesh: the devices; None for JAX's default one.
    """

    args: argparse.Namespace
    config: ModelConfig
    kind: str
    runs: dict[str, Preset]
    size: tuple[int, int]
    dtype: DTypeLike
    initial: UInt8[np.ndarray, "t h w 3"] | None
    mesh: Mesh | None

    def load(self) -> pipeline.Pipeline:
        """The model, without its text encoder."""
        return pipeline.load(
            self.args.model, self.dtype, allow_bidirectional=self.args.allow_bidirectional,
            mesh=self.mesh, text=False, vae=self.args.vae, quantize=self.args.quantize,
        )  # fmt: skip

    def record(self, script: Changes, seconds: float, seed: int) -> dict[str, Any]:
        """What is known of a video before it is made.

        Args:
            script: its prompts.
            seconds: its length.
            seed: of its noise.

        Returns:
            Its record, as JSON has it.
        """
        args = self.args
        return {
            "command": args.command,
            "prompt": script[0].prompt,
            "script": [change[:3] for change in script] if len(script) > 1 else None,
            "seconds": seconds,
            "frames": pipeline.frame_count(seconds),
            "fps": FPS,
            "size": list(self.size),
            "seed": seed,
            "batch": args.batch,
            "dtype": np.dtype(self.dtype).name,
            "initial": describe(args.init, self.initial),
            "strategy": {label: records.settings(run.strategy) for label, run in self.runs.items()},
            "trim": {label: records.settings(run.trim) for label, run in self.runs.items()},
            "model": {
                "name": args.model,
                "kind": self.kind,
                "config": dataclasses.asdict(self.config),
                "manifest": fingerprint(find(args.model)),
            },
            "vae": args.vae,
            "versions": records.versions(),
            "device": records.device()
            | ({} if self.mesh is None else {"mesh": dict(self.mesh.shape)}),
        }


def settle(
    args: argparse.Namespace,
    presets: Sequence[str],
    caches: Sequence[str | None],
    shortest: int,
    longest: int,
) -> Settings:
    """Checks everything but prompts and places: each preset with each cache.

    Args:
        args: the command's.
        presets: names, as `configuration` takes them.
        caches: policies in text, None for the model's own.
        shortest: frames of the shortest video; what it starts from must be shorter.
        longest: frames of the longest video, which must fit into memory.

    Returns:
        The settings.

    Raises:
        ValueError: something can't be made as asked, or doesn't fit.
        OSError: the model or what to start from can't be read.
    """
    devices.join(args)
    config, kind = read_config(find(args.model), vae=args.vae, quantize=args.quantize)
    if config.dit.quantize and args.dtype == "float32":
        raise ValueError(
            f"weights rounded to {config.dit.quantize} can't be float32: leave --dtype out, or "
            "take the model unquantised."
        )
    runs = configurations(args, presets, caches, config.rollout)
    size = args.size or config.size
    pipeline.check_size(config, size)
    strategies = [run.strategy for run in runs.values()]
    mesh = args.mesh and devices.mesh_of(args.mesh, config, strategies, size, args.batch)
    initial = None
    if args.init is not None:
        initial = read_initial(args.init, size, shortest, args.init_seconds)
    elif args.init_seconds is not None:
        raise ValueError("--init-seconds is of a video to start from: give --init too.")
    dtype = default_dtype() if args.dtype is None else np.dtype(args.dtype)
    needs = [
        memory.estimate(
            config, dtype, strategy, size=size, frames=longest, batch=args.batch, streamed=True
        )
        for strategy in strategies
    ]
    if args.text_device == "cpu":
        needs = [
            dataclasses.replace(need, text=0, host=max(need.host, need.text)) for need in needs
        ]
    most = max(needs, key=lambda memory: memory.device)
    memory.check(most if mesh is None else memory.parted(most, tuple(mesh.shape.values())))
    return Settings(args, config, kind, runs, size, dtype, initial, mesh)


def request(
    args: argparse.Namespace,
    presets: Sequence[str],
    caches: Sequence[str | None],
    folder: Path | None = None,
) -> Callable[[], None]:
    """Checks a request for each preset with each cache.

    Args:
        args: the command's.
        presets: names, as `configuration` takes them.
        caches: policies in text, None for the model's own.
        folder: of an earlier call, which is gone on with.

    Returns:
        The work, which makes the videos and writes files.

    Raises:
        ValueError: something can't be made as asked.
        OSError: a file can't be read, or the place can't be written to.
    """
    script, seconds = script_of(args)
    prompts = [change.prompt for change in script]
    frames = pipeline.frame_count(seconds)
    settings = settle(args, presets, caches, frames, frames)
    runs, labels = settings.runs, list(settings.runs)
    for run in runs.values():
        for change in script[1:]:
            way(run.strategy, change.how)  # refused now, not after minutes
    several = len(labels) > 1
    name, alone = "compare" if several else "video", labels if several else ()
    if not devices.first():
        planned = Output(Path(tempfile.mkdtemp()) / f"{name}.mp4", False, args.batch, alone)
    elif folder is None:
        planned = plan(args.out, prompts[0], name, samples=args.batch, alone=alone)
    else:
        planned = Output(folder.with_suffix(".mp4"), False, args.batch)
        writable(folder)

    started = time.perf_counter()
    with devices.on(settings.mesh):
        texts = encode_prompts(
            args.model, prompts, settings.dtype, settings.mesh, quantize=args.quantize,
            device=args.text_device,
        )  # fmt: skip
        encoded = [
            change._replace(
                prompt=jnp.repeat(text[None], args.batch, 0), words=(words,) * args.batch
            )
            for change, text, words in zip(script, texts, prompts, strict=True)
        ]
        pipe = settings.load()
        record = settings.record(script, seconds, args.seed)
        if folder is not None:
            resume.check(folder, record)
        held = None if folder is None else latest(folder / word(labels[0]))
        streams = {
            label: pipe.stream(
                encoded, seconds=seconds, seed=args.seed, strategy=run.strategy, trim=run.trim,
                size=settings.size, initial=settings.initial,
                resume=None if held is None else held["state"],
            )
            for label, run in runs.items()
        }  # fmt: skip
    writes = devices.first()
    job = Job(
        planned, runs, streams, record, frames, time.perf_counter() - started,
        every=0 if several else FPS * args.save_every, resumed=folder is not None and writes,
        before=held and {"held": held["held"], "segment": held["segment"] if writes else 0},
    )  # fmt: skip

    def work() -> None:
        try:
            with devices.on(settings.mesh):
                make(job)
        finally:
            if not devices.first():
                shutil.rmtree(planned.path.parent, ignore_errors=True)

    return work


def read_initial(
    path: Path, size: tuple[int, int], frames: int, seconds: float | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """Reads what a video starts from, and warns of what was done to it.

    Args:
        path: a picture or video.
        size: height and width that it is brought to.
        frames: of the whole video.
        seconds: how much of the clip's beginning is taken; all of it if not given.

    Returns:
        Its frames, fewer than `frames`.

    Raises:
        ValueError: it can't be read as pictures, or leaves nothing to be made.
        OSError: it can't be read at all.
    """
    most = frames if seconds is None else min(frames, pipeline.frame_count(seconds))
    clip = read_clip(path, size, most)
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


def describe(path: Path | None, frames: np.ndarray | None) -> dict[str, Any] | None:
    """A file's name and SHA-256, and how many frames of it are taken, for the record."""
    if path is None or frames is None:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": str(path), "sha256": digest, "frames": len(frames)}


def fingerprint(model: Path) -> str | None:
    """SHA-256 of what says which arrays a model has; None where nothing does."""
    manifest = inside(model, "manifest.json")
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else None
