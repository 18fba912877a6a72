"""Atomic folders: complete under their final name, or not there at all."""

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".part"
EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
HERE = -100  # AT_FDCWD


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `path` when all went well.

    On any exception it is removed and `path` left as it was. What a killed run leaves is a hidden
    folder, which the next run for the same `path` removes.

    Args:
        path: The folder to make or to replace.

    Yields:
        A folder beside it.

    Raises:
        OSError: It can't be made.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    aside.mkdir()
    handle = _lock(aside)  # held as long as this process lives: so others know that it does
    try:
        yield aside
        if path.exists():
            _exchange(aside, path)
        else:
            aside.rename(path)
    finally:
        os.close(handle)
        shutil.rmtree(aside, ignore_errors=True)


def link_tree(source: Path, target: Path) -> None:
    """Makes the same files under another folder: without copies, where the disk allows it.

    Args:
        source: A folder or a file.
        target: The new one, which doesn't exist yet.

    Raises:
        OSError: It can't be made.
    """
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _lock(folder: Path) -> int:
    """An open handle with the folder's lock. Raises BlockingIOError if another has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _sweep(path: Path) -> None:
    """Removes what killed runs for `path` left."""
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.name.endswith(SUFFIX):
            try:
                handle = _lock(left)
            except OSError:
                continue
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)


def _exchange(new: Path, old: Path) -> None:
    """Swaps two folders, in one step where the system has one."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(new), os.fsencode(old)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(HERE, names[0], HERE, names[1], EXCHANGE)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, EXCHANGE)
    else:
        failed = True
    if failed:  # a kill between these leaves the old folder under the name in the middle
        middle = old.with_name(f".{old.name}.before")
        old.rename(middle)
        new.rename(old)
        middle.rename(new)
