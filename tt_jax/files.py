"""Files that appear whole under their final name, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_unfinished: set[Path] = set()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A name beside `path`, with its suffix, to write to; renamed to `path` when all went well.

    On any exception, an interrupt included, what was written is removed and `path` left as it was.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    _unfinished.add(aside)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
        _unfinished.discard(aside)


def discard_unfinished() -> None:
    """Removes what is being written, for a program that ends at once."""
    for aside in list(_unfinished):
        aside.unlink(missing_ok=True)
