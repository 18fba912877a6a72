"""`tt-jax compare`: the same noise with and without TokenTrim, under presets, under caches."""

import argparse
from collections.abc import Callable
from typing import Any

from tt_jax.cli.options import PLAIN, TRIMMED, add_request

MOST = 12  # runs


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("compare", help="the same noise with and without TokenTrim")
    add_request(parser, several=True)
    parser.add_argument(
        "--presets", nargs="+", metavar="NAME", default=[PLAIN, TRIMMED],
        help=f"rows of the paper's tables, as in generate --preset; {PLAIN}, or {TRIMMED} over it "
        f"(default: both). Each is run with each --cache, up to {MOST} runs",
    )  # fmt: skip
    parser.set_defaults(check=check)


def check(args: argparse.Namespace) -> Callable[[], None]:
    """Checks the request; the work makes the videos. Raises ValueError or OSError."""
    caches = args.cache or [None]
    for what, names in (("preset", args.presets), ("cache", caches)):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the {what} {twice!r} is given twice: name different ones.")
    count = len(args.presets) * len(caches)
    if count < 2:
        raise ValueError("a comparison needs two runs: give another preset, or another --cache.")
    if count > MOST:
        raise ValueError(
            f"{len(args.presets)} presets with {len(caches)} caches are {count} runs, and {MOST} "
            "at most fit into a comparison: leave some out (--presets plain for a single one)."
        )
    from tt_jax.cli.run import request

    return request(args, args.presets, caches)
