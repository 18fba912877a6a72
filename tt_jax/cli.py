"""The command line, `tt-jax` or `python -m tt_jax`: arguments to pipeline calls.

A subcommand is a function that registers its parser, listed in `COMMANDS`, and one that takes the
parsed arguments, checks all of them, and returns the work that is left. Bad input is a
ValueError or OSError of that second function: one sentence on stderr, exit code 2.
"""

import argparse
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich.console import Console

from tt_jax.evaluate.report import add_eval
from tt_jax.files import discard_unfinished
from tt_jax.fit import add_plan
from tt_jax.generate import add_compare, add_generate
from tt_jax.lab.command import add_lab
from tt_jax.pipeline import NonFiniteError

Work = Callable[[], int | None]  # an exit code, if not 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"tt-jax: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0 done, 1 failed on the way, 2 bad input (nothing was written), 130 interrupted.
    """
    parser = Parser(prog="tt-jax", description="Text to video with TokenTrim, in JAX.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    args = parser.parse_args(argv)
    args.command = shlex.join(["tt-jax", *(sys.argv[1:] if argv is None else argv)])
    keep_programs()
    previous = signal.signal(signal.SIGINT, stop)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        try:
            try:
                work = args.check(args)
            except (ValueError, OSError) as error:
                return say(str(error), 2)
            return work() or 0
        except (NonFiniteError, OSError) as error:
            return say(str(error), 1)
        except KeyboardInterrupt:
            return say("interrupted.", 130)
        finally:
            signal.signal(signal.SIGINT, previous)


def say(message: str, code: int = 0) -> int:
    """One line on stderr; returns the exit code."""
    print(f"tt-jax: {' '.join(message.split())}", file=sys.stderr)
    return code


def stop(*_: Any) -> NoReturn:
    """Ends the program at Ctrl-C. An exception would be lost, or worse, in XLA's callbacks."""
    discard_unfinished()
    Console(stderr=True).show_cursor()
    os._exit(say("interrupted.", 130))


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told another place."""
    # JAX's options become attributes when it is imported.
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "tt-jax" / "programs"))


# --- fetch, verify ------------------------------------------------------------------------------


def add_fetch(commands: Any) -> None:
    """`tt-jax fetch`: a published model, downloaded and converted."""
    parser = commands.add_parser("fetch", help="download a published model and convert it")
    parser.add_argument("name", help="wan2.1-1.3b, wan2.1-14b, self-forcing or rolling-forcing")
    parser.add_argument("folder", type=Path, help="the model's folder; its other parts are kept")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.set_defaults(check=fetch)


def fetch(args: argparse.Namespace) -> Work:
    """Downloads and converts; the report of a checkpoint that can't be converted is printed."""
    from convert import hub  # here and not above: only this command needs it

    if args.name not in hub.KNOWN:
        raise ValueError(f"there is no {args.name!r} to fetch, only {', '.join(hub.KNOWN)}.")

    def work() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it cleans up; no XLA runs here
        try:
            print(*hub.fetch(args.name, args.folder, args.revision, say), sep="\n")
        except hub.BadInput as error:
            print(f"tt-jax: {error}", file=sys.stderr)
            return 2
        return 0

    return work


def add_verify(commands: Any) -> None:
    """`tt-jax verify`: whether a model's folder holds what was converted, and works."""
    parser = commands.add_parser("verify", help="check a converted model; exit code 1 if wrong")
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.set_defaults(check=verify)


def verify(args: argparse.Namespace) -> Work:
    """Runs the checks; the work prints their table."""
    from tt_jax.verify import table
    from tt_jax.verify import verify as check

    rows = list(check(args.folder))

    def work() -> int:
        print(table(rows))
        return int(not all(row.passed for row in rows))

    return work


COMMANDS = (add_generate, add_compare, add_fetch, add_verify, add_eval, add_lab, add_plan)
