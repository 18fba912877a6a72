"""`tt-jax generate`: a prompt to a video, its drift picture and its record."""

import argparse
from collections.abc import Callable
from typing import Any

from tt_jax.cli.options import PLAIN, PRESETS, TRIMMED, add_request


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("generate", help="make a video from a prompt")
    add_request(parser)
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--trim", action=argparse.BooleanOptionalAction, default=True,
        help="let TokenTrim intervene (it measures either way)",
    )  # fmt: skip
    way.add_argument("--preset", help=f"a row of the paper's tables: {', '.join(PRESETS)}")
    parser.set_defaults(check=check)


def check(args: argparse.Namespace) -> Callable[[], None]:
    """Checks the request; the work makes the video. Raises ValueError or OSError."""
    from tt_jax.cli.run import request

    preset = args.preset or (TRIMMED if args.trim else PLAIN)
    return request(args, [preset], [args.cache])
