"""`tt-jax fetch`: a published model, downloaded and converted."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tt_jax.cli.console import say
from tt_jax.cli.options import FETCHED


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("fetch", help="download a published model and convert it")
    parser.add_argument("name", help=f"one of {', '.join(FETCHED)}; see `tt-jax models`")
    parser.add_argument("folder", type=Path, help="the model's folder; its other parts are kept")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.set_defaults(check=check, cleans_up=True)


def check(args: argparse.Namespace) -> Callable[[], int]:
    """Downloads and converts; the report of a checkpoint that can't be converted is printed."""
    from convert import hub  # here and not above: only this command needs it
    from convert.known import KNOWN

    if args.name not in KNOWN:
        raise ValueError(f"there is no {args.name!r} to fetch, only {', '.join(KNOWN)}.")

    def work() -> int:
        try:
            print(*hub.fetch(args.name, args.folder, args.revision, say), sep="\n")
        except hub.BadInput as error:
            print(f"tt-jax: {error}", file=sys.stderr)
            return 2
        return 0

    return work
