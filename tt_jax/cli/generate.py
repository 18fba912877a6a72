"""`tt-jax generate`: a prompt to a video, its drift picture and its record."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tt_jax.cli.options import PLAIN, PRESETS, TRIMMED, add_request, natural


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("generate", help="make a video from a prompt")
    arguments(parser)
    parser.set_defaults(check=check)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    shown = add_request(parser)
    shown.add_argument(
        "--resume", type=Path, metavar="FOLDER",
        help="go on with a run that was interrupted; its folder, NAME.run beside the video, has "
        "its settings",
    )  # fmt: skip
    parser.add_argument(
        "--save-every", type=natural, default=10, metavar="SECONDS",
        help="seconds of video between two states that a killed run can go on from; 0 for none",
    )  # fmt: skip
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--trim", action=argparse.BooleanOptionalAction, default=True,
        help="let TokenTrim intervene (it measures either way)",
    )  # fmt: skip
    way.add_argument("--preset", help=f"a row of the paper's tables: {', '.join(PRESETS)}")


def check(args: argparse.Namespace) -> Callable[[], None]:
    """Checks the request; the work makes the video. Raises ValueError or OSError."""
    folder = args.resume
    if folder is not None:
        from tt_jax.cli.resume import restored

        args = restored(args.command, folder, arguments)
    from tt_jax.cli.run import request

    preset = args.preset or (TRIMMED if args.trim else PLAIN)
    return request(args, [preset], [args.cache], folder)
