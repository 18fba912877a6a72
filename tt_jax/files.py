"""Files that appear whole under their final name, or not at all; and where caches lie."""

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_unfinished: set[Path] = set()
_numbers = itertools.count()


@contextmanager
def atomic(path: Path, *, new: bool = False, kept: Path | None = None) -> Iterator[Path]:
    """Gives a file its final name once it is whole.

    On any exception, an interrupt included, what was written is removed and `path` left as it was.

    Args:
        path: the final name.
        new: refuse to replace what has that name.
        kept: the name of what was written until an exception came, instead of removing it.

    Yields:
        A name beside `path`, with its suffix, to write to.

    Raises:
        FileExistsError: `new`, and there is something of that name.
    """
    # Neither another process nor another thread has this name.
    aside = path.with_name(f".{path.stem}.{os.getpid()}-{next(_numbers)}.part{path.suffix}")
    _unfinished.add(aside)
    try:
        yield aside
        if new:
            _rename_to_new(aside, path)
        else:
            aside.replace(path)
    except BaseException:
        if kept is not None and aside.exists():
            aside.replace(kept)
        raise
    finally:
        aside.unlink(missing_ok=True)
        _unfinished.discard(aside)


def _rename_to_new(aside: Path, path: Path) -> None:
    try:
        path.hardlink_to(aside)  # the one rename that fails where the name is taken
    except FileExistsError:
        raise
    except OSError:  # no links on this file system
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        aside.replace(path)


def discard_unfinished() -> None:
    """Removes what is being written, for a program that ends at once."""
    for aside in list(_unfinished):
        aside.unlink(missing_ok=True)


def new_folder(path: Path) -> Path:
    """Makes a folder that nobody else has.

    Args:
        path: the folder's name.

    Returns:
        The folder made: `path`, or the first of `path-2`, `path-3`, ... that didn't exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in itertools.chain([path.name], (f"{path.name}-{n}" for n in itertools.count(2))):
        folder = path.with_name(name)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError  # it never ends


def cache_folder(name: str) -> Path | None:
    """A folder of the user's for what can be made again; it may not exist yet.

    Args:
        name: what is kept there.

    Returns:
        `tt-jax/NAME` below XDG_CACHE_HOME or the home folder's `.cache`; None where there is no
        home folder either.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        home = Path(given) if given else Path.home() / ".cache"
    except RuntimeError:  # neither HOME nor a known user
        return None
    return home / "tt-jax" / name
