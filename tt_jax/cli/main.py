"""The command line, `tt-jax` or `python -m tt_jax`: arguments to pipeline calls.

A subcommand is a module, listed in `COMMANDS`, whose `add` registers its parser, and whose `check`
takes the parsed arguments, checks all of them, and returns the work that is left. Only `check`
imports what is heavy, so that help and errors of arguments come at once. Bad input is a ValueError
or OSError of `check`: one sentence on stderr, exit code 2.
"""

import argparse
import ctypes
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from tt_jax import __version__
from tt_jax.cli import compare, env, eval, fetch, generate, lab, models, plan, serve, verify
from tt_jax.cli.console import say
from tt_jax.errors import ModelError, NonFiniteError
from tt_jax.files import cache_folder, discard_unfinished

Work = Callable[[], int | None]  # an exit code, if not 0
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
LARGE = 1 << 23  # bytes


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False
        plain = plain or "default" in (action.help or "")
        return action.help if plain else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Help, **settings})

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"tt-jax: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: its arguments, for a process that does other things too: it is left as it was. If not
            given, this is the program `tt-jax`: arguments are the process's, compiled programs are
            kept, and Ctrl-C ends it at once.

    Returns:
        The exit code: 0 done, 1 failed on the way, 2 bad input (nothing was written),
        130 interrupted.

    Raises:
        SystemExit: help was asked for (0), or an argument can't be (2).
    """
    arguments = sys.argv[1:] if argv is None else argv
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # so Python marks bytes
            return say(f"the argument {argument!a} isn't UTF-8.", 2)
    parser = Parser(prog="tt-jax", description="Text to video with TokenTrim, in JAX.")
    parser.add_argument("--version", action="version", version=f"tt-jax {__version__}")
    parser.set_defaults(cleans_up=False, computes=True)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    args = parser.parse_args(arguments)
    args.command = shlex.join(["tt-jax", *arguments])
    if argv is None:
        own_process(args)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        try:
            try:
                work = args.check(args)
            except (ValueError, OSError) as error:
                return say(str(error), 2)
            return work() or 0
        except (ModelError, NonFiniteError, OSError) as error:
            return say(str(error), 1)
        except KeyboardInterrupt:
            return say("interrupted.", 130)


def own_process(args: argparse.Namespace) -> None:
    """Settles what concerns the whole process of `tt-jax`, before JAX is imported.

    `args.cleans_up`: the command ends by itself at Ctrl-C. `args.computes`: it needs a device.
    """
    if not args.cleans_up:
        for number in (signal.SIGINT, signal.SIGTERM):  # the second one from a spot machine, say
            signal.signal(number, stop)
    return_memory()
    if args.computes:
        keep_programs()
        return
    os.environ["JAX_PLATFORMS"] = "cpu"  # no accelerator is taken
    # Programs for a TPU can't be read back where there is none, and JAX warns of each.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def return_memory() -> None:
    """Has large blocks go back to the system as soon as they are free: glibc moves them to its heap
    after the first ones, which grows whenever a chunk's frames don't fit between what stays."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told another place."""
    folder = cache_folder("programs")
    if folder is None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that can't be written: without a cache
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # Else those that compile within a second would be compiled at every start.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def stop(*_: Any) -> NoReturn:
    """Ends the program at Ctrl-C or SIGTERM. An exception would be lost, or worse, in callbacks of
    XLA's."""
    from rich.console import Console

    discard_unfinished()
    Console(stderr=True).show_cursor()
    os._exit(say("interrupted.", 130))


COMMANDS = (generate, compare, serve, models, fetch, verify, eval, lab, plan, env)
