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
        "its settings (but --mesh may be another)",
    )  # fmt: skip
    shown.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help="many videos: a prompt a line, or a table (.csv, .jsonl) of prompt, seed, name, "
        "script; --out is their folder (default: runs/FILE's name), what is finished in it is "
        "skipped, and --batch of them are made at once",
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


def check(args: argparse.Namespace) -> Callable[[], int | None]:
    """Checks the request; the work makes the video. Raises ValueError or OSError."""
    folder = args.resume
    if folder is not None:
        from tt_jax.cli.resume import restored

        args = restored(args.command, folder, arguments)
    preset = args.preset or (TRIMMED if args.trim else PLAIN)
    if args.prompts is not None:
        from tt_jax.cli.batch import request as many

        return many(args, preset)
    from tt_jax.cli.run import request

    return request(args, [preset], [args.cache], folder)
