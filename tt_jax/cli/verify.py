"""`tt-jax verify`: whether a model's folder holds what was converted, and works."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("verify", help="check a converted model; exit code 1 if wrong")
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.set_defaults(check=check)


def check(args: argparse.Namespace) -> Callable[[], int]:
    """Runs the checks; the work prints their table. Raises ModelError."""
    from tt_jax.verify import table, verify

    rows = list(verify(args.folder))

    def work() -> int:
        print(table(rows))
        return int(not all(row.passed for row in rows))

    return work
