"""`tt-jax generate --prompts FILE`: a folder of videos with an index, a batch at a time."""

import argparse
import csv
import fcntl
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tt_jax import records
from tt_jax.cli import devices, resume
from tt_jax.cli.console import say
from tt_jax.cli.making import notes
from tt_jax.cli.output import writable
from tt_jax.cli.progress import Tally, count, watch
from tt_jax.cli.prompt_file import Item, read
from tt_jax.cli.run import SECONDS, Settings, settle, switched
from tt_jax.cli.stopping import heeded
from tt_jax.cli.take import Take, latest
from tt_jax.errors import NonFiniteError
from tt_jax.files import atomic
from tt_jax.models.configs import FPS
from tt_jax.overview import Observer, Overview
from tt_jax.pipeline import frame_count
from tt_jax.plots import drift, style
from tt_jax.prompts import encode_rows, padded

INDEX, BATCH, UNFINISHED = "index.csv", "batch.json", "unfinished.run"
# What a record has of its own video, and what may differ from one call to the next.
OWN = ("prompt", "script", "seconds", "frames", "seed")
FREE = (*resume.FREE, "batch")


def request(args: argparse.Namespace, preset: str) -> Callable[[], int]:
    """Checks a request for many videos; the work makes them. Raises ValueError or OSError."""
    items, wrong = read(args.prompts, args.seed)
    if not items:
        raise ValueError(f"no line can be made: {wrong[0]}")
    lengths = [length(item, args.seconds) for item in items]
    items = [
        item._replace(seconds=seconds, script=switched(item.script, args.switch))
        for item, seconds in zip(items, lengths, strict=True)
    ]
    frames = list(map(frame_count, lengths))
    settings = settle(args, [preset], [args.cache], min(frames), max(frames))
    folder = args.out or Path("runs") / args.prompts.stem
    if folder.is_file() or folder.suffix.lower() == ".mp4":
        raise ValueError(f"--out {folder} must be a folder: there are many videos.")
    if devices.first():
        writable(folder)
    else:
        folder = Path(tempfile.mkdtemp())
    own = [
        settings.record(item.script, seconds, item.seed)
        for item, seconds in zip(items, lengths, strict=True)
    ]
    common = plain({name: value for name, value in own[0].items() if name not in OWN})
    check_folder(folder, common)
    batch = Batch(settings, folder)
    with devices.on(settings.mesh):
        for sentence in wrong:
            batch.fail(sentence)
        batch.load(list(zip(items, map(plain, own), strict=True)))

    def work() -> int:
        try:
            with devices.on(settings.mesh), locked(folder, common):
                return batch.make(len(items) + len(wrong))
        finally:
            if not devices.first():
                shutil.rmtree(folder, ignore_errors=True)

    return work


def length(item: Item, seconds: float | None) -> float:
    """Seconds of a video: as --seconds says, or its scenes, or `SECONDS`."""
    seconds = item.seconds if seconds is None else seconds
    return SECONDS if seconds is None else seconds


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it is read again."""
    return json.loads(json.dumps(record))


def check_folder(folder: Path, common: dict[str, Any]) -> None:
    """Raises ValueError if a folder's videos were made with other settings."""
    try:
        was = json.loads((folder / BATCH).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        raise ValueError(f"{folder / BATCH} can't be read: give another --out.") from None
    differ = [name for name in common if name not in FREE and was.get(name) != common[name]]
    if differ:
        raise ValueError(
            f"{folder} was begun with another {' and '.join(differ)}: give the same settings, or "
            "another --out."
        )


@contextmanager
def locked(folder: Path, common: dict[str, Any]) -> Iterator[None]:
    """One call's alone, until it ends in whatever way. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / BATCH
    if not path.exists():
        records.save(path, common)
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another tt-jax is at work in {folder}: wait for it.") from None
        yield


class Batch:
    """Videos of one model and its settings, in one folder.

    Args:
        settings: of all.
        folder: theirs.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        ((self.label, self.run),) = settings.runs.items()
        self.size = settings.args.batch
        self.index: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.left: list[tuple[Item, dict[str, Any]]] = []
        self.unfinished = folder / UNFINISHED

    def load(self, wanted: Sequence[tuple[Item, dict[str, Any]]]) -> None:
        """Finds out what isn't there yet; loads the model if something isn't.

        Args:
            wanted: each video, and its record as far as it is known before.
        """
        left = [pair for pair in wanted if not self.finished(*pair)]
        if jax.process_count() > 1:  # the first process has the files
            names = [item.name in {own.name for own, _ in left} for item, _ in wanted]
            names = multihost_utils.broadcast_one_to_all(np.array(names))
            left = list(itertools.compress(wanted, names))
        if self.index:
            say(f"finished before: {len(self.index)} of {count(len(wanted), 'video')}.")
        self.left = left
        if left:
            args, dtype = self.settings.args, self.settings.dtype
            words = sorted({change.prompt for item, _ in left for change in item.script})
            rows = encode_rows(
                args.model, words, dtype, self.settings.mesh, quantize=args.quantize,
                device=args.text_device,
            )  # fmt: skip
            self.texts = dict(zip(words, rows, strict=True))
            self.pipe = self.settings.load()

    def make(self, wanted: int) -> int:
        """Makes what isn't there yet, and says what was made.

        Args:
            wanted: how many lines the file has.

        Returns:
            The exit code: 1 if a video that was asked for isn't there.
        """
        groups: dict[Any, list[Any]] = {}
        for item, record in self.left:  # only prompts that change at the same times go together
            times = tuple((change.seconds, change.how) for change in item.script)
            groups.setdefault((times, item.seconds), []).append((item, record))
        made = [
            group[i : i + self.size]
            for group in groups.values()
            for i in range(0, len(group), self.size)
        ]
        try:
            with heeded(lambda: bool(self.index), lambda: None) as check:
                for number, group in enumerate(made, 1):
                    label = group[0][0].name if len(group) == 1 else f"{len(group)} videos"
                    self.together(group, f"{number} of {len(made)}, {label}", check)
        except (KeyboardInterrupt, OSError):
            say(f"{len(self.index)} of {wanted} are made: the same command goes on.")
            raise
        say(
            f"{len(self.index)} of {count(wanted, 'video')} are in {self.folder}"
            + (f"; {count(len(self.wrong), 'line')} failed." if self.wrong else ".")
        )
        if self.index:
            self.write_index()
            print(self.folder / INDEX)
        return int(bool(self.wrong))

    def fail(self, sentence: str) -> None:
        """Says what is wrong with a line; the others are made."""
        self.wrong.append(sentence)
        say(sentence)

    def at(self, item: Item) -> str:
        """Where a sentence about an item begins."""
        return f"line {item.line} of {self.settings.args.prompts}"

    def finished(self, item: Item, record: dict[str, Any]) -> bool:
        """Whether nothing is to be done: the video is there, or its name is another's."""
        path = self.folder / f"{item.name}.json"
        video = path.with_suffix(".mp4")
        try:
            was = json.loads(path.read_text(encoding="utf-8"))
            same = all(was[name] == record[name] for name in OWN)
        except FileNotFoundError:
            ours = f'"{item.name}"' in self.begun()
            if video.exists() and not ours:
                self.fail(f"{self.at(item)}: {video} is there and isn't ours: give another name.")
            return video.exists() and not ours
        except (OSError, ValueError, LookupError, TypeError):
            was, same = {}, False
        if not same:
            self.fail(f"{self.at(item)}: {path} is of another video: give another name.")
        elif video.exists():
            self.index.append(row(item.name, was, self.label))
        return not same or video.exists()

    def begun(self) -> str:
        """What an earlier call had begun when it ended."""
        try:
            return (self.unfinished / resume.REQUEST).read_text(encoding="utf-8")
        except OSError:
            return ""

    def together(
        self, group: list[tuple[Item, dict[str, Any]]], label: str, check: Callable[[], None]
    ) -> None:
        """Makes a batch, or goes on with it. Raises OSError or KeyboardInterrupt."""
        # The program of a full batch is compiled already: the last one is filled up.
        items = [item for item, _ in group]
        items += items[:1] * (self.size - len(items))
        names = [item.name for item in items]
        first, seconds = items[0], items[0].seconds
        assert seconds is not None
        asked = {"names": names, "records": [strip(record) for _, record in group]}
        before: dict[str, Any] | None = None
        if self.begun() and plain(asked) == json.loads(self.begun()):
            before = latest(self.unfinished / "batch")
        if before is None:
            shutil.rmtree(self.unfinished, ignore_errors=True)
            self.unfinished.mkdir()
            resume.save(self.unfinished, asked)
        held = before or {"held": None, "segment": 0, "state": None}
        observer = Observer(frame_count(seconds), held=held["held"])
        every = FPS * self.settings.args.save_every if jax.process_count() == 1 else 0
        take = Take(
            self.unfinished / "batch", observer, self.run.strategy.lag, every=every,
            segment=held["segment"],
        )  # fmt: skip
        try:
            script = [
                change._replace(
                    prompt=self.text([item.script[i].prompt for item in items]),
                    words=tuple(item.script[i].prompt for item in items),
                )
                for i, change in enumerate(first.script)
            ]
            chunks = self.pipe.stream(
                script, seconds=seconds, seed=[item.seed for item in items],
                strategy=self.run.strategy, trim=self.run.trim, size=self.settings.size,
                initial=self.settings.initial, resume=held["state"],
            )  # fmt: skip
            del before, held
            done = len(observer.held["starts"])
            tally = Tally(
                label, observer.length, FPS, self.run.trim.retries > 0, chunks=done, before=done,
                frames=take.shown,
            )  # fmt: skip
            for chunk in watch(chunks, tally):
                take.add(chunk)
                del chunk  # with a whole context
                check()
        except (ValueError, NonFiniteError) as error:
            take.close()
            shutil.rmtree(self.unfinished)
            for item, _ in group:
                self.fail(f"{self.at(item)}: {error}")
            return
        paths = [self.folder / f"{item.name}.mp4" for item, _ in group]
        video = take.save(paths)
        for i, (item, record) in enumerate(group):
            self.keep(item, record, video, i)
        shutil.rmtree(self.unfinished)

    def text(self, prompts: Sequence[str]) -> jax.Array:
        """Embeddings of a batch."""
        rows = [self.texts[prompt] for prompt in prompts]
        return jnp.asarray(padded(rows, self.pipe.config.text.text_len), self.settings.dtype)

    def keep(self, item: Item, record: dict[str, Any], video: Overview, sample: int) -> None:
        """Writes what belongs to a video; its record last, which says that it is whole."""
        path = self.folder / f"{item.name}.json"
        title = " | ".join(change.prompt for change in item.script)
        note = " · ".join([record["model"]["name"], f"seed {item.seed}", *notes([self.run])])
        acted = self.run.trim.retries > 0
        figure = drift.picture({self.label: video}, title, note, acted=acted, sample=sample)
        style.save(figure, path.with_suffix(".png"))
        measured = {"video": f"{item.name}.mp4", "alone": {}}
        measured[self.label] = records.chunks(video, sample)
        switches = {self.label: records.switches(video, sample)}
        record = record | {"switches": switches, "samples": [measured]}
        records.save(path, record)
        self.index.append(row(item.name, record, self.label))
        self.write_index()

    def write_index(self) -> None:
        """Writes the table of all that is finished."""
        with atomic(self.folder / INDEX) as aside, aside.open("w", newline="") as file:
            table = csv.DictWriter(file, list(self.index[0]))
            table.writeheader()
            table.writerows(sorted(self.index, key=lambda row: row["name"]))


def strip(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what may differ from one call to the next."""
    return {name: value for name, value in record.items() if name not in resume.FREE}


def row(name: str, record: dict[str, Any], label: str) -> dict[str, Any]:
    """A finished video's line of the index."""
    rows = record["samples"][0][label]
    abnormal = sum(bool(chunk["triggered"]) for chunk in rows)
    severities = [chunk["severity"] for chunk in rows if chunk["severity"] is not None]
    acts = record["trim"][label]["retries"] > 0
    script = record["script"]
    return {
        "name": name,
        "prompt": " | ".join(prompt for _, prompt, _ in script) if script else record["prompt"],
        "seed": record["seed"],
        "seconds": record["seconds"],
        "file": f"{name}.mp4",
        "record": f"{name}.json",
        "picture": f"{name}.png",
        "chunks": len(rows),
        "abnormal": abnormal,
        "interventions": abnormal if acts else 0,
        "highest_severity": max(severities, default=None),
    }
