"""`tt-jax compare`: the same noise with and without TokenTrim, or under two presets."""

import argparse
from collections.abc import Callable
from typing import Any

from tt_jax.cli.options import PLAIN, TRIMMED, add_request


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("compare", help="the same noise with and without TokenTrim")
    add_request(parser)
    parser.add_argument(
        "--presets", nargs=2, metavar="NAME", default=[PLAIN, TRIMMED],
        help="two rows of the paper's tables, as in generate --preset (default: the plain "
        "strategy, and TokenTrim over it)",
    )  # fmt: skip
    parser.set_defaults(check=check)


def check(args: argparse.Namespace) -> Callable[[], None]:
    """Checks the request; the work makes both videos. Raises ValueError or OSError."""
    from tt_jax.cli.run import request

    return request(args, args.presets)
