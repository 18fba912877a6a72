"""The work of `tt-jax generate` and `tt-jax compare`: runs, whose frames leave as they are made."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tt_jax import cache, records
from tt_jax.cli import resume
from tt_jax.cli.console import say
from tt_jax.cli.output import Output, word
from tt_jax.cli.progress import Tally, count, watch
from tt_jax.cli.stopping import heeded
from tt_jax.cli.take import Take
from tt_jax.media.read import read_frames
from tt_jax.media.write import partial, tile, write_video
from tt_jax.models.configs import FPS
from tt_jax.overview import Observer, Overview
from tt_jax.plots import drift as plots
from tt_jax.plots import grid, style
from tt_jax.strategies.presets import Preset
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.video import Chunk

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Job:
    """What was asked for, checked.

    Attributes:
        planned: the files.
        runs: settings, by label.
        streams: the chunks of each run, which hasn't begun.
        record: of them all, as far as it is known.
        frames: of each video.
        loading: seconds that it took.
        every: frames between two states of an only run; 0 for none.
        resumed: whether an earlier call began it.
        before: what that one had "held" of the video, and its next "segment".
    """

    planned: Output
    runs: Mapping[str, Preset]
    streams: Mapping[str, Iterator[Chunk]]
    record: dict[str, Any]
    frames: int
    loading: float
    every: int
    resumed: bool
    before: dict[str, Any] | None


def make(job: Job) -> None:
    """Makes the videos, pictures and the record, and says what was made.

    Args:
        job: what to make.

    Raises:
        NonFiniteError: a chunk isn't finite.
        OSError: a file can't be written.
        KeyboardInterrupt: that was asked for. After each of them what was finished is kept.
    """
    output = job.planned if job.resumed else job.planned.claim()
    takes: dict[str, Take] = {}

    def begun() -> bool:
        return any(take.shown for take in takes.values())

    try:
        with heeded(begun, output.clear) as check:
            if not job.resumed:
                resume.save(output.unfinished, job.record)
            videos, tallies, timings = _run(job, output, takes, check)
            record = _record(job, output, videos, timings)
            records.save(output.record, record)
            if output.alone:
                for sample, path in enumerate(output.videos()):
                    shown = [read_frames(takes[label].spool(sample)) for label in job.runs]
                    write_video(path, _checked(tile(shown, list(job.runs)), check))
    except BaseException:
        _give_up(output, takes)
        raise
    output.clear()
    if job.resumed:
        for path in output.videos():
            partial(path).unlink(missing_ok=True)
    _draw(job, output, videos)
    _conclude(output, tallies)


def _run(
    job: Job, output: Output, takes: dict[str, Take], check: Callable[[], None]
) -> tuple[dict[str, Overview], list[Tally], dict[str, Any]]:
    """Makes each run's videos. The last run comes first: pictures of two show the chunks in which
    it intervened."""
    videos: dict[str, Overview] = {}
    tallies: dict[str, Tally] = {}
    timings: dict[str, Any] = {"loading": job.loading}
    like: Overview | None = None
    for label in reversed(list(job.runs)):
        run, before = job.runs[label], job.before or {"held": None, "segment": 0}
        observer = Observer(job.frames, held=before["held"], like=like)
        take = takes[label] = Take(
            output.unfinished / word(label), observer, run.strategy.lag, every=job.every,
            segment=before["segment"], lossless=bool(output.alone),
        )  # fmt: skip
        tally = tallies[label] = _tally(job, label, observer)
        for chunk in watch(job.streams[label], tally):
            take.add(chunk)
            del chunk  # with a whole context
            check()
        timings[label] = {
            "first_chunk": tally.first, "all_chunks": time.perf_counter() - tally.started
        }  # fmt: skip
        videos[label] = take.save(output.videos(label if output.alone else None))
        like = like or videos[label]
    return (
        {label: videos[label] for label in job.runs},
        [tallies[label] for label in job.runs],
        {name: timings[name] for name in ("loading", *job.runs)},
    )


def _tally(job: Job, label: str, observer: Observer) -> Tally:
    held = observer.held
    chunks = len(held["starts"])
    return Tally(
        label, job.frames, FPS, job.runs[label].trim.retries > 0, chunks=chunks, before=chunks,
        frames=held["shown"], abnormal=int(held["numbers"]["triggered"].sum()) if chunks else 0,
    )  # fmt: skip


def _checked(items: Iterator[T], check: Callable[[], None]) -> Iterator[T]:
    for item in items:
        check()
        yield item


def _record(
    job: Job, output: Output, videos: Mapping[str, Overview], timings: dict[str, Any]
) -> dict[str, Any]:
    own = {label: output.videos(label) for label in output.alone}
    samples = records.samples(videos, output.videos(), own)
    # Of the first sample: all have the same prompts.
    switches = {label: records.switches(video, 0) for label, video in videos.items()}
    return job.record | {"switches": switches, "timings": timings, "samples": samples}


def _give_up(output: Output, takes: Mapping[str, Take]) -> None:
    """Keeps what was finished of the run that was being made, and says where."""
    goes_on = False
    if takes:
        label, take = list(takes.items())[-1]
        paths = output.videos(label if output.alone else None)
        kept = [] if all(path.exists() for path in paths) else take.keep(paths)
        goes_on = take.saved and not output.alone
        if kept:
            names = ", ".join(map(str, kept))
            say(f"the {take.shown / FPS:.1f} s that were finished are in {names}.")
    if goes_on:
        say(f"go on with: tt-jax generate --resume {output.unfinished}")
    else:
        output.clear()


def _draw(job: Job, output: Output, videos: Mapping[str, Overview]) -> None:
    runs, record = list(job.runs.values()), job.record
    note = " · ".join([record["model"]["name"], f"seed {record['seed']}", *notes(runs)])
    script = record["script"]
    title = " | ".join(prompt for _, prompt, _ in script) if script else record["prompt"]
    for i, file in enumerate(output.pictures()):
        if len(videos) > 2:
            picture = grid.picture(videos, title, note, sample=i)
        else:
            acted = runs[-1].trim.retries > 0
            picture = plots.picture(videos, title, note, acted=acted, sample=i)
        style.save(picture, file)


def _conclude(output: Output, tallies: list[Tally]) -> None:
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
