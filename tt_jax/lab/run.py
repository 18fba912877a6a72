"""An experiment's run: its cells in order, those that are finished left alone."""

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tt_jax import records
from tt_jax.evaluate.measures import optical_flow
from tt_jax.files import atomic
from tt_jax.lab import store
from tt_jax.lab.make import Made
from tt_jax.lab.observe import observe
from tt_jax.lab.spec import Cell, Experiment
from tt_jax.lab.store import Finished
from tt_jax.trim.policies import MEASURES

Maker = Callable[[Cell], Made]

TABLES_EVERY = 60.0  # seconds


def origin(digest: str) -> dict[str, Any]:
    """What decides on a cell's numbers beside its settings: model, versions, device, flow."""
    return {
        "model": digest,
        "versions": records.versions(),
        "device": records.device(),
        "flow": optical_flow()[0],
    }


def run(
    experiment: Experiment,
    text: str,
    folder: Path,
    names: dict[Cell, str],
    maker: Maker,
    about: dict[str, Any],
    say: Callable[[str], None],
    at_once: int = 1,
) -> bool:
    """Makes the cells that aren't finished, in the file's order; whether all are.

    A cell whose arm had nothing to do isn't made again: `twin`. Every finished cell is in the
    folder at once, so that a run can end at any time and go on from there; the tables follow every
    minute and when it ends.

    Args:
        experiment: as it was read.
        text: of its file, which the folder keeps.
        folder: of the run.
        names: of the cells' files.
        maker: makes one cell.
        about: what `records.json` says.
        say: is told of each finished cell.
        at_once: cells that are made side by side; those that are compared with one another never
            are.

    Returns:
        Whether all cells are finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / store.FILE) as aside:
        aside.write_text(text, encoding="utf-8")
    records.save(folder / store.RECORD, about)
    finished = {cell: store.read_cell(folder, names[cell]) for cell in experiment.cells}
    started = written = time.perf_counter()
    ended, lock = threading.Event(), threading.Lock()

    def write_tables() -> None:
        store.write_tables(folder, [(c, found) for c, found in finished.items() if found])

    def finish(cell: Cell) -> str:
        """Makes the cell; how."""
        made = twin(cell, finished)
        note = "never abnormal, so as without intervention"
        if made is None:
            new = maker(cell)
            cost = {} if new.cost is None else dataclasses.asdict(new.cost)
            made = Finished(new.seconds, observe(cell, new), cost)
            note = f"{made.seconds:.0f} s"
        store.write_cell(folder, names[cell], made)
        # As if it were read again, so that a resumed run's tables are the same.
        finished[cell] = store.read_cell(folder, names[cell])
        return note

    def work(cells: Sequence[Cell]) -> None:
        nonlocal written
        try:
            for cell in cells:
                # Two arms of the same settings are the same cell under two names.
                finished[cell] = finished[cell] or store.read_cell(folder, names[cell])
                if finished[cell] is not None:
                    continue
                if time.perf_counter() - started > 3600 * experiment.hours:
                    ended.set()
                if ended.is_set():
                    return
                note = finish(cell)
                with lock:
                    say(f"{numbers[cell]}/{len(numbers)} {describe(cell)}: {note}")
                    if time.perf_counter() - written > TABLES_EVERY:
                        write_tables()
                        written = time.perf_counter()
        except BaseException:
            ended.set()
            raise

    any_arm = experiment.cells[0].arm
    numbers = {cell: number for number, cell in enumerate(experiment.cells, 1)}
    # Cells that differ in their arm alone lie side by side.
    compared = itertools.groupby(numbers, lambda cell: dataclasses.replace(cell, arm=any_arm))
    try:
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(work, list(cells)) for _, cells in compared]
            try:
                for future in futures:
                    future.result()
            finally:
                ended.set()
    finally:
        write_tables()
    left = sum(found is None for found in finished.values())
    if left:
        say(f"{experiment.hours:g} hours are over; {left} cells are left for another run.")
    return not left


def twin(cell: Cell, finished: Mapping[Cell, Finished | None]) -> Finished | None:
    """A finished cell of an arm that never intervenes, whose videos must be this cell's too.

    It is judged alike, and none of its chunks was abnormal, so that this arm has nothing to do
    either; its wall time stands for this cell's.

    Args:
        cell: what would be made.
        finished: what is made already.

    Returns:
        That cell; None if there is none.
    """
    for other, found in finished.items():
        alike = dataclasses.replace(other, arm=cell.arm) == cell
        if found and alike and not other.arm.trim.retries and judge(other) == judge(cell):
            chunks = (row for rows in found.rows for row in rows if row["kind"] == "chunk")
            if not any(row["triggered"] for row in chunks):
                return found
    return None


def judge(cell: Cell) -> tuple[Any, ...]:
    """What decides on whether a chunk is abnormal, as long as none was."""
    trim = cell.arm.trim
    measured = MEASURES.get(str(trim.select)), trim.when, trim.p
    return cell.arm.cache, measured, trim.lam, trim.warmup, trim.statistics


def describe(cell: Cell) -> str:
    """A cell in a line."""
    last = cell.first + len(cell.prompts)
    return (
        f"{cell.host}, {cell.arm.name}, {cell.stress.name}, {cell.seconds:g} s, "
        f"prompts {cell.first + 1} to {last}, seed {cell.seed}"
    )
