"""An experiment from its file to its results: checks of what was asked for, then the work."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from tt_jax import pipeline
from tt_jax.checkpoint import find, read_config
from tt_jax.lab import estimate, make, run, spec, store
from tt_jax.lab.spec import Cell
from tt_jax.pipeline import Pipeline

# Cells made side by side on a CPU, where one small program leaves cores idle: on two cores, two at
# a time are 1.4 times as fast as one.
AT_ONCE = 2


def prepare(file: Path, folder: Path) -> Callable[[], None]:
    """Checks the file and everything that it names; the work makes what isn't in `folder` yet.

    Args:
        file: the experiment.
        folder: of the run.

    Returns:
        The work that is left.

    Raises:
        ValueError: what is asked for can't be, in one sentence.
        FileNotFoundError: there is no such file.
    """
    experiment = spec.read(file)
    text = file.read_text(encoding="utf-8")
    configs, digests = {}, {}
    for cell in experiment.cells:
        name = cell.stress.model
        if name not in configs:
            model = find(name)
            configs[name], _ = read_config(model)
            digests[name] = store.model_digest(model)
        make.check(cell, configs[name])
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
