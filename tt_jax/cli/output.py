"""Where a run's files go. Nothing that exists is ever replaced."""

import dataclasses
import itertools
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tt_jax.files import new_folder
from tt_jax.video import sample_paths

# Suffixes of files that aren't written: no folder is meant by them.
OTHERS = (
    ".3gp", ".apng", ".avi", ".avif", ".csv", ".flv", ".gif", ".heic", ".jpeg", ".jpg", ".json",
    ".m4v", ".mkv", ".mov", ".mp3", ".mpeg", ".mpg", ".npy", ".ogv", ".pdf", ".png", ".tif",
    ".tiff", ".ts", ".txt", ".wav", ".webm", ".webp", ".wmv", ".y4m", ".zip",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Output:
    """The files of a run: videos by sample, each with a picture, and one record.

    Attributes:
        path: of the video; of several samples, `path-0`, `path-1`, ...
        own: whether its folder is made for this run alone.
        samples: how many there are.
        alone: labels of runs whose own videos are written too, as `path-LABEL`.
    """

    path: Path
    own: bool
    samples: int
    alone: Sequence[str] = ()

    @property
    def record(self) -> Path:
        """Settings and measurements."""
        return self.path.with_suffix(".json")

    def videos(self, label: str | None = None) -> list[Path]:
        """The video of each sample, or one run's own."""
        path = self.path
        if label is not None:
            path = path.with_stem(f"{path.stem}-{word(label)}")
        return sample_paths(path, self.samples)

    def pictures(self) -> list[Path]:
        """The drift picture of each sample."""
        return [video.with_suffix(".png") for video in self.videos()]

    @property
    def unfinished(self) -> Path:
        """The folder of what isn't finished; as long as it is there, the names are taken."""
        return self.path.with_suffix(".run")

    def files(self) -> Iterator[Path]:
        """All of them."""
        for label in (None, *self.alone):
            yield from self.videos(label)
        yield from (*self.pictures(), self.record)

    def claim(self) -> "Output":
        """Makes the folder `unfinished`, for names that no other run has.

        Returns:
            Where the files go: this, or with a number behind its name, where another run has taken
            it since it was planned.
        """
        if self.own:
            output = dataclasses.replace(self, path=new_folder(self.path.parent) / self.path.name)
            output.unfinished.mkdir()
            return output
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stem = self.path.stem
        for name in itertools.chain([stem], (f"{stem}_{n}" for n in itertools.count(2))):
            output = dataclasses.replace(self, path=self.path.with_stem(name))
            try:
                output.unfinished.mkdir()
            except FileExistsError:
                continue
            if not any(file.exists() for file in output.files()):
                return output
            output.unfinished.rmdir()
        raise AssertionError  # it never ends

    def clear(self) -> None:
        """Removes the folder `unfinished`, and the folder around it where nothing else is in it.

        States go first, what was asked for goes last: a run that is killed meanwhile can go on.
        """
        for state in self.unfinished.glob("*/state-*"):
            state.unlink(missing_ok=True)
        for folder in self.unfinished.glob("*/"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.unfinished, ignore_errors=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def word(label: str) -> str:
    """A run's label, which may have a policy's settings, as part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", label)


def plan(
    out: Path | None, prompt: str, name: str, *, samples: int, alone: Sequence[str] = ()
) -> Output:
    """Finds out where a run's files will go; writes nothing.

    Args:
        out: a folder or the name of the mp4; None for a new folder below `runs`.
        prompt: its first words are in the new folder's name.
        name: of the video in a folder, without its suffix.
        samples: how many videos are made.
        alone: labels of runs whose own videos are written too.

    Returns:
        The names of all files.

    Raises:
        ValueError: nothing can be written there, or something is there.
    """
    if out is None:
        words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:50].rstrip("-")
        folder = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{words}"
        output = Output(folder / f"{name}.mp4", True, samples, alone)
    elif out.suffix.lower() == ".mp4" and not out.is_dir():
        output = Output(out, False, samples, alone)
    elif out.suffix.lower() in OTHERS and not out.is_dir():
        raise ValueError(f"--out {out}: videos are written as .mp4, or give a folder.")
    else:
        output = Output(out / f"{name}.mp4", False, samples, alone)
    writable(output.path.parent)
    if not output.own:
        if output.unfinished.exists():
            raise ValueError(
                f"{output.unfinished} is of a run that isn't finished: go on with it (generate "
                "--resume), give another --out, or remove it."
            )
        refuse_existing(output.files())
    return output


def refuse_existing(files: Iterator[Path]) -> None:
    """Raises ValueError if one of the files is there."""
    for file in files:
        if file.exists() or file.is_symlink():
            raise ValueError(f"{file} exists already: give another --out, or move it away.")


def writable(folder: Path) -> None:
    """Raises ValueError if nothing can be written in a folder, which needn't exist yet."""
    there = next(parent for parent in (folder / "file").absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"{folder} can't be written: {error.strerror}.") from None
