"""`tt-jax lab run` and `tt-jax lab report`: experiments that say whether an intervention helps."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Registers the command and its two steps."""
    parser = commands.add_parser("lab", help="run an experiment from its file, and report on it")
    steps = parser.add_subparsers(required=True, metavar="STEP")
    running = steps.add_parser("run", help="make and measure what isn't yet; can be interrupted")
    running.add_argument("file", type=Path, metavar="FILE", help="the experiment, in TOML")
    running.add_argument("--out", type=Path, help="the results' folder (default: runs/FILE's name)")
    running.set_defaults(check=check_run)
    reporting = steps.add_parser("report", help="tables and pictures of what a run has measured")
    reporting.add_argument("folder", type=Path, metavar="FOLDER", help="of `tt-jax lab run`")
    reporting.set_defaults(check=check_report)


def check_run(args: argparse.Namespace) -> Callable[[], None]:
    """Checks the file and everything that it names. Raises ValueError or FileNotFoundError."""
    from tt_jax.lab.experiment import prepare

    return prepare(args.file, args.out or Path("runs") / args.file.stem)


def check_report(args: argparse.Namespace) -> Callable[[], None]:
    """Reads a run's folder; the work writes the report. Raises ValueError or FileNotFoundError."""
    from tt_jax.lab import report, spec, store

    rows = store.read_csv(args.folder / store.RESULTS)
    timings = store.read_csv(args.folder / store.TIMINGS)
    experiment = spec.read(args.folder / store.FILE)

    def work() -> None:
        print(*report.write(args.folder, experiment, rows, timings), sep="\n")

    return work
