"""`tt-jax lab run` and `tt-jax lab report`: checks of what was asked for, then the work."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tt_jax import pipeline
from tt_jax.checkpoint import read_config
from tt_jax.lab import estimate, make, report, run, spec, store
from tt_jax.lab.spec import Cell
from tt_jax.pipeline import Pipeline

# Cells made side by side on a CPU, where one small program leaves cores idle: on two cores, two at
# a time are 1.4 times as fast as one.
AT_ONCE = 2


def add_lab(commands: Any) -> None:
    """`tt-jax lab`: experiments that say whether an intervention helps."""
    parser = commands.add_parser("lab", help="run an experiment from its file, and report on it")
    steps = parser.add_subparsers(required=True, metavar="STEP")
    running = steps.add_parser("run", help="make and measure what isn't yet; can be interrupted")
    running.add_argument("file", type=Path, metavar="FILE", help="the experiment, in TOML")
    running.add_argument("--out", type=Path, help="the results' folder (default: runs/FILE's name)")
    running.set_defaults(check=request_run)
    reporting = steps.add_parser("report", help="tables and pictures of what a run has measured")
    reporting.add_argument("folder", type=Path, metavar="FOLDER", help="of `tt-jax lab run`")
    reporting.set_defaults(check=request_report)


def request_run(args: argparse.Namespace) -> Callable[[], None]:
    """Checks the file and everything that it names. Raises ValueError or FileNotFoundError."""
    experiment = spec.read(args.file)
    text = args.file.read_text(encoding="utf-8")
    configs, digests = {}, {}
    for cell in experiment.cells:
        name = cell.stress.model
        if name not in configs:
            folder = pipeline.find(name)
            configs[name], _ = read_config(folder)
            digests[name] = store.model_digest(folder)
        make.check(cell, configs[name])
    folder = args.out or Path("runs") / args.file.stem
    store.check_writable(folder)
    origins = {name: run.origin(digest) for name, digest in digests.items()}
    names = {cell: store.identity(cell, origins[cell.stress.model]) for cell in experiment.cells}
    left = [cell for cell in experiment.cells if not store.path_of(folder, names[cell]).is_file()]

    def pipe_of(cell: Cell) -> Pipeline:
        return _load(cell.stress.model, cell.stress.dtype)

    for cell in left:  # here, where a model that can't be loaded is bad input
        pipe_of(cell)

    say = functools.partial(print, flush=True)

    def work() -> None:
        if left:
            say(f"{len(left)} of {len(experiment.cells)} cells are left; trying out the speed.")
            hours = estimate.hours(left, pipe_of)
            say(f"estimated: {hours:.2f} hours at most; the file allows {experiment.hours:g}.")
        done = run.run(
            experiment, text, folder, names, lambda cell: make.make(cell, pipe_of(cell)), origins,
            say, AT_ONCE if jax.default_backend() == "cpu" else 1,
        )  # fmt: skip
        if done:
            print(folder / store.RESULTS)

    return work


@functools.cache
def _load(model: str, dtype: str | None) -> Pipeline:
    return pipeline.load(model, None if dtype is None else jnp.dtype(dtype))


def request_report(args: argparse.Namespace) -> Callable[[], None]:
    """Reads a run's folder; the work writes the report. Raises ValueError or FileNotFoundError."""
    folder = args.folder
    rows = store.read_csv(folder / store.RESULTS)
    timings = store.read_csv(folder / store.TIMINGS)
    experiment = spec.read(folder / store.FILE)

    def work() -> None:
        print(*report.write(folder, experiment, rows, timings), sep="\n")

    return work
