"""`tt-jax generate --resume FOLDER`: the settings of a run that was interrupted."""

import argparse
import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tt_jax import records

REQUEST = "request.json"
# What may differ: when, where and with which versions a run goes on.
FREE = ("command", "versions", "device")
PLACES = ("mesh", "coordinator", "processes", "process")


def save(folder: Path, record: dict[str, Any]) -> None:
    """Keeps what a run was asked for.

    Args:
        folder: the run's own.
        record: of the run, as far as it is known before.
    """
    records.save(folder / REQUEST, record)


def restored(
    command: str, folder: Path, arguments: Callable[[argparse.ArgumentParser], None]
) -> argparse.Namespace:
    """The arguments of the command that began a run.

    Args:
        command: with --resume, and no setting that differs but the devices; where it names none,
            they are the first command's.
        folder: the run's own.
        arguments: adds those of `generate` to a parser.

    Returns:
        What the first command's were.

    Raises:
        ValueError: there is no such run, or a setting differs.
    """
    record = read(folder)
    parser = argparse.ArgumentParser(prog="tt-jax generate")
    arguments(parser)
    was = parser.parse_args(shlex.split(record["command"])[2:])
    asked = shlex.split(command)[2:]
    places = {name: getattr(parser.parse_args(asked), name) for name in PLACES}
    if any(place is not None for place in places.values()):
        vars(was).update(places)
    now = parser.parse_args(asked, copy.copy(was))
    for name, value in vars(was).items():
        given = getattr(now, name)
        if name not in ("resume", "prompt") and given != value:
            option = name.replace("_", "-")
            raise ValueError(
                f"{folder} was begun with --{option} {value} and can't go on with {given}: leave "
                f"--{option} out."
            )
    was.command = record["command"]
    return was


def read(folder: Path) -> dict[str, Any]:
    """What a run was asked for.

    Args:
        folder: the run's own.

    Returns:
        Its record, as far as it was known before.

    Raises:
        ValueError: there is no such run.
    """
    try:
        return json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"{folder} is no folder of a run that can go on: give NAME.run beside its video."
        ) from None


def check(folder: Path, record: dict[str, Any]) -> None:
    """Compares what a run was begun with and what it would go on with.

    Args:
        folder: the run's own.
        record: of the run to come.

    Raises:
        ValueError: the model or a file that was given is another one now.
    """
    was, now = read(folder), json.loads(json.dumps(record))
    differ = [name for name in was if name not in FREE and was[name] != now.get(name)]
    if differ:
        raise ValueError(
            f"{folder} was begun with another {' and '.join(differ)}: give those files back, or "
            "begin a new run."
        )
