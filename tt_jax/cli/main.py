"""The command line, `tt-jax` or `python -m tt_jax`: arguments to pipeline calls.

A subcommand is a module, listed in `COMMANDS`, whose `add` registers its parser, and whose `check`
takes the parsed arguments, checks all of them, and returns the work that is left. Only `check`
imports what is heavy, so that help and errors of arguments come at once. Bad input is a ValueError
or OSError of `check`: one sentence on stderr, exit code 2.
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

from tt_jax.cli import compare, env, eval, fetch, generate, lab, plan, verify
from tt_jax.cli.console import say
from tt_jax.errors import NonFiniteError
from tt_jax.files import discard_unfinished

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
    for command in COMMANDS:
        command.add(commands)
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


def stop(*_: Any) -> NoReturn:
    """Ends the program at Ctrl-C. An exception would be lost, or worse, in XLA's callbacks."""
    from rich.console import Console

    discard_unfinished()
    Console(stderr=True).show_cursor()
    os._exit(say("interrupted.", 130))


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told another place."""
    import jax

    # JAX's options become attributes when it is imported.
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "tt-jax" / "programs"))


COMMANDS = (generate, compare, fetch, verify, eval, lab, plan, env)
