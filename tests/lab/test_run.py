import dataclasses
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from labs import contents, table

from tt_jax import TokenTrim
from tt_jax.cli import main as cli
from tt_jax.lab import make, observe, report, run, spec, store
from tt_jax.lab.cost import Cost
from tt_jax.lab.make import Made
from tt_jax.shapes.language import evaluation_prompts
from tt_jax.shapes.world import render

SECONDS = 4
STARTS = tuple(max(0, 12 * i - 3) for i in range(6))  # 64 frames: 9, then 12 a chunk, the last cut
SCENES = [scene for _, scene in evaluation_prompts(256)]

FILE = """
batch = 2
against = ["plain"]

[arms.plain]
retries = 0

[arms.top]
resample_noise = true

[stress.planted]
plant = { second = 2.0, rows = [0], columns = [0, 1], strength = 3.0 }

[[studies]]
name = "both"
prompts = 4
seconds = 4
hosts = ["self-forcing"]
arms = ["plain", "top"]
stress = ["clean", "planted"]
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "both.toml"
    path.write_text(FILE)
    return spec.read(path)


class Rendered:
    """A maker: shows the prompts' scenes, "top" with an object lost in the last second.

    abnormal: whether every batch's first video has an abnormal chunk.
    Stops with an interrupt when `left` cells were made.
    """

    def __init__(self, left=99, abnormal=True):
        self.left, self.abnormal, self.made = left, abnormal, []

    def __call__(self, cell):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.made.append(cell)
        frames = np.stack([self.video(cell, cell.first + i) for i in range(len(cell.prompts))])
        chunks = len(STARTS)
        severity = np.tile(np.arange(chunks, dtype=float), (2, 1)) + cell.first
        severity[:, 0] = np.nan
        acted = np.zeros((2, chunks), bool)
        acted[0, 4] = self.abnormal
        top = cell.arm.name == "top"
        dropped = np.zeros((2, chunks, 64), bool)
        dropped[:, 4, :4] = top & acted[:, 4, None]  # of which the first two are planted
        record = {
            "severity": severity,
            "accepted_severity": np.where(top & acted, severity / 2, severity),
            "threshold": np.where(np.arange(chunks) < 3, np.inf, 3.0) * np.ones((2, 1)),
            "triggered": acted,
            "kept_fraction": 1 - dropped.mean(axis=2),
            "dropped": dropped,
        }
        place = None
        if cell.stress.plant:
            tokens = np.arange(64) < 2
            place = make.Planted(tokens, chunk=4, chunks=2)
        mem = cell.arm.cache == "mem-rope"
        cost = Cost(2500000 if mem else 1000000, 3000000000)
        return Made(frames, record, STARTS, (8, 8), place, 2.0 if top else 1.0, cost)

    def video(self, cell, index):
        scene = SCENES[index]
        frames = render(scene, 16 * SECONDS)
        if cell.arm.name == "top":
            frames[-16:] = render(type(scene)((), scene.background), 16)
        return frames


@pytest.fixture(scope="module", autouse=True)
def _measured_once():
    """Takes the measures of the same frames once: they are pure, and were most of the time."""

    def once(measure):
        known = {}

        def look(*given):
            key = tuple(x.tobytes() if isinstance(x, np.ndarray) else repr(x) for x in given)
            if key not in known:
                known[key] = measure(*given)
            return known[key]

        return look

    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (observe.measures, "measure"), (observe.field, "jumps"),
            (observe.field, "sink_distances"), (observe.checker, "measure"),
            (observe.truth, "curves"), (observe.truth, "place_error"),
        ):  # fmt: skip
            patch.setattr(module, name, once(getattr(module, name)))
        yield


def lab(experiment, folder, maker, said=None, at_once=1):
    names = {cell: store.identity(cell, {"model": "m"}) for cell in experiment.cells}
    say = (lambda line: None) if said is None else said.append
    return run.run(experiment, FILE, folder, names, maker, {"model": "m"}, say, at_once)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run."""
    path = tmp_path_factory.mktemp("lab")
    (path / "both.toml").write_text(FILE)
    assert lab(spec.read(path / "both.toml"), path / "out", Rendered())
    return path / "out"


# --- the run ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_table_is_tidy(finished):
    rows = table(finished)
    # Of 2 arms, 2 stresses and 4 prompts: 4 seconds, 6 chunks, and one of the video if planted.
    assert len(rows) == 16 * (4 + 6) + 8
    keys = ("stress", "host", "arm", "seconds", "seed", "prompt", "kind", "at")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
    prompt = evaluation_prompts(256)[0][0]
    mine = [row for row in rows if (row["arm"], row["prompt"]) == ("top", prompt)]
    clean = [row for row in mine if row["stress"] == "clean"]
    assert {row["regime"] for row in clean} == {"small_moving"}
    assert [row["lost"] for row in clean if row["kind"] == "second"] == ["0", "0", "0", "1"]
    assert [row["colour_error"] for row in clean if row["kind"] == "second"][-1] == ""
    chunks = [row for row in clean if row["kind"] == "chunk"]
    assert [row["at"] for row in chunks] == ["0", "0.5625", "1.3125", "2.0625", "2.8125", "3.5625"]
    assert [row["severity"] for row in chunks] == ["", "1", "2", "3", "4", "5"]
    assert [row["threshold"] for row in chunks] == ["", "", "", "3", "3", "3"]
    assert [row["triggered"] for row in chunks] == ["0", "0", "0", "0", "1", "0"]
    assert [row["dropped"] for row in chunks] == ["0"] * 4 + ["0.0625", "0"]
    assert [row["on_object"] != "" for row in chunks] == [False] * 4 + [True, False]
    (video,) = [row for row in mine if row["stress"] == "planted" and row["kind"] == "video"]
    assert (video["detected"], video["precision"], video["recall"]) == ("1", "0.5", "1")
    assert video["recovery"] == "0"


def test_an_interrupted_run_goes_on_and_gives_the_same_table(experiment, finished, tmp_path):
    folder = tmp_path / "out"
    for left in (0, 3):
        with pytest.raises(KeyboardInterrupt):
            lab(experiment, folder, Rendered(left))
    assert 0 < len(table(folder)) < len(table(finished))
    last = Rendered()
    assert lab(experiment, folder, last)
    assert last.made == list(experiment.cells[3:])
    assert contents(folder) == contents(finished)
    again = Rendered(0)
    assert lab(experiment, folder, again) and not again.made
    assert contents(folder) == contents(finished)


def test_cells_made_side_by_side_give_the_same_tables(experiment, finished, tmp_path):
    meeting = threading.Barrier(2, timeout=60)

    def maker(cell):
        if cell.arm.name == "plain":
            meeting.wait()  # for the other one, so that two are made at once
        return Rendered()(cell)

    assert lab(experiment, tmp_path / "out", maker, at_once=2)
    assert contents(tmp_path / "out") == contents(finished)


def test_what_was_half_written_counts_as_nothing(experiment, finished, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    first, *_ = sorted((folder / "cells").iterdir())
    first.unlink()
    write = Path.write_text

    def half(path, text, *rest, **options):
        write(path, text[: len(text) // 2], *rest, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", half)
        store.write_cell(folder, first.stem, store.Finished(1.0, []))
    assert not first.exists()
    assert lab(experiment, folder, Rendered())
    assert contents(folder) == contents(finished)


def test_a_changed_file_keeps_the_cells_that_it_still_has(experiment, finished, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    path = tmp_path / "more.toml"
    path.write_text(
        FILE.replace("[arms.top]", "[arms.low]\nlam = 1\nresample_noise = true\n[arms.top]")
        .replace('["plain", "top"]', '["plain", "low", "top"]')
        .replace("planted", "hurt")  # a name decides on no number
    )
    maker = Rendered()
    assert lab(spec.read(path), folder, maker)
    assert {cell.arm.name for cell in maker.made} == {"low"} and len(maker.made) == 4
    assert {row["stress"] for row in table(folder)} == {"clean", "hurt"}


def test_whatever_decides_on_the_numbers_is_in_a_cells_name(experiment):
    cell = experiment.cells[0]
    other = experiment.cells[1]
    names = {
        store.identity(cell, {"model": "m"}),
        store.identity(cell, {"model": "n"}),
        store.identity(other, {"model": "m"}),
        store.identity(experiment.cells[2], {"model": "m"}),
    }
    assert len(names) == 4
    renamed = spec.Arm("renamed", cell.arm.trim)
    same = spec.Cell(*(renamed if value is cell.arm else value for value in vars(cell).values()))
    assert store.identity(same, {"model": "m"}) in names


@pytest.mark.slow
def test_arms_of_the_same_settings_are_made_once(tmp_path):
    path = tmp_path / "twins.toml"
    twins = FILE.replace("[arms.top]", "[arms.twin]\nresample_noise = true\n[arms.top]")
    path.write_text(twins.replace('["plain", "top"]', '["plain", "twin", "top"]'))
    maker = Rendered()
    assert lab(spec.read(path), tmp_path / "out", maker)
    assert {cell.arm.name for cell in maker.made} == {"plain", "twin"}
    assert {row["arm"] for row in table(tmp_path / "out")} == {"plain", "twin", "top"}


def test_arms_of_other_caches_are_other_cells_and_no_twins(tmp_path):
    """Also where no chunk is abnormal: another cache is another video."""
    path = tmp_path / "caches.toml"
    given = 'cache = ["window", "mem-rope"]'
    arms = FILE.replace("retries = 0", f"retries = 0\n{given}")
    arms = arms.replace("resample_noise = true", f"resample_noise = true\n{given}")
    arms = arms.replace('["clean", "planted"]', '["clean"]')
    path.write_text(arms.replace('against = ["plain"]', 'against = ["plain window"]'))
    maker, experiment = Rendered(abnormal=False), spec.read(path)
    assert lab(experiment, tmp_path / "out", maker)
    assert {cell.arm.name for cell in maker.made} == {"plain window", "plain mem-rope"}
    folder = tmp_path / "out"
    timings = store.read_csv(folder / store.TIMINGS)
    assert {row["cache"] for row in timings} == {"1000000", "2500000"}
    report.write(folder, experiment, store.read_csv(folder / store.RESULTS), timings)
    lines = (folder / "report.md").read_text().splitlines()
    (header,) = (line for line in lines if line.startswith("| cache policy |"))
    assert header.endswith("| chunk time over that of plain window | chunk, GFLOP | cache, MB |")
    found = [line.strip("| ").split(" | ") for line in lines[lines.index(header) + 2 :][:4]]
    assert [row[0] for row in found] == [
        "plain window", "plain mem-rope", "top window", "top mem-rope",
    ]  # fmt: skip
    assert found[1][1] == "0.000 [0.000, 0.000]"
    assert found[3][-4:] == ["+0.000 [+0.000, +0.000]", "1.00", "3.0", "2.5"]
    assert found[0][-4:] == ["", "1.00", "3.0", "1.0"]
    # A cell without a cache keeps the name that it had before there were any.
    cell = lab_cell(None)
    assert store.identity(cell, {}) != store.identity(lab_cell("window"), {})
    assert store.identity(cell, {}) == "169ca011e3f07666e61d2671"


def lab_cell(policy):
    arm = spec.Arm("it", TokenTrim(), policy)
    prompts = (spec.Prompt("a cat", ""),)
    return spec.Cell(spec.Stress("clean", "shapes"), "self-forcing", arm, 3.0, 0, 0, prompts)


def test_an_arm_without_occasion_is_not_made(experiment, tmp_path):
    maker, said = Rendered(abnormal=False), []
    assert lab(experiment, tmp_path / "out", maker, said)
    assert {cell.arm.name for cell in maker.made} == {"plain"} and len(maker.made) == 4
    assert sum("never abnormal" in line for line in said) == 4
    rows = table(tmp_path / "out")
    plain, top = ([row for row in rows if row["arm"] == arm] for arm in ("plain", "top"))
    assert [{**row, "arm": ""} for row in top] == [{**row, "arm": ""} for row in plain]
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 8


@pytest.mark.parametrize(
    "other",
    ["lam = 1", "p = 0.2", "warmup = 1", 'when = "first_step"', 'select = "novelty"'],
)
def test_an_arm_that_is_judged_otherwise_is_made(other, tmp_path):
    path = tmp_path / "it.toml"
    path.write_text(FILE.replace("[arms.top]", f"[arms.top]\n{other}"))
    maker = Rendered(abnormal=False)
    assert lab(spec.read(path), tmp_path / "out", maker)
    assert len(maker.made) == 8


def test_the_digest_of_a_model_is_that_of_its_parts(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "log.csv").write_text("anything")
    assert store.model_digest(folder) == store.model_digest(tiny_model)
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    assert store.model_digest(folder) != store.model_digest(tiny_model)


def test_the_file_bounds_the_hours(experiment, tmp_path, monkeypatch):
    bounded = dataclasses.replace(experiment, hours=1.0)
    clock = iter(range(0, 10**6, 800))  # seconds; three looks for a cell, the first of them decides
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(clock))
    maker, said = Rendered(), []
    assert not lab(bounded, tmp_path / "out", maker, said)
    assert len(maker.made) == 2
    assert said[-1] == "1 hours are over; 6 cells are left for another run."
    assert len(table(tmp_path / "out")) > 0


# --- the report ---------------------------------------------------------------------------------


def test_report(finished, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    assert cli.main(["lab", "report", str(folder)]) == 0
    written = capsys.readouterr().out.split()
    assert [os.path.basename(path) for path in written] == [
        "report.md",
        "both-self-forcing-clean-drift.png", "both-self-forcing-clean-pareto.png",
        "both-self-forcing-planted-drift.png", "both-self-forcing-planted-pareto.png",
    ]  # fmt: skip
    for path in written[1:]:
        assert Path(path).read_bytes().startswith(b"\x89PNG")
        assert f"({os.path.basename(path)})" in (folder / "report.md").read_text()
    text = (folder / "report.md").read_text()
    lines = text.splitlines()
    # The last two of four seconds are the end, of which the last lost its object.
    assert "| objects lost, share: end | 0.000 [0.000, 0.000] | 0.500 [0.500, 0.500] |" in lines
    assert "| objects lost, share: end | +0.500 [+0.500, +0.500] |" in lines
    assert "| large_slow (1): objects lost, share: end | +0.500 |" in lines
    # The first sample of each batch: 1, 0, 1, 0.
    assert "| abnormal chunks a video | 0.50 [0.00, 1.00] | 0.50 [" in text
    assert "| severity kept over first | 1.000 [1.000, 1.000] | 0.500 [0.500, 0.500] |" in lines
    assert "| wall time over that of plain | 1.00 | 2.00 |" in lines
    clean, planted = text.split("### self-forcing, planted")
    assert "precision" not in clean
    assert "| precision of the tokens dropped |  | 0.500 [0.500, 0.500] |" in planted
    assert "nan" not in text


def test_report_of_an_unfinished_run(experiment, tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        lab(experiment, folder, Rendered(3))
    rows, timings = (store.read_csv(folder / name) for name in (store.RESULTS, store.TIMINGS))
    report.write(folder, experiment, rows, timings)
    text = (folder / "report.md").read_text()
    assert "### self-forcing, clean" in text and "### self-forcing, planted" not in text
    assert "Only 2 of 4 prompts are finished in every arm." in text
