"""`tt-jax lab`, from the experiment's file to the report."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from labs import contents, table

from tt_jax import pipeline
from tt_jax.cli import main as cli
from tt_jax.errors import ModelError
from tt_jax.lab import estimate, make, spec
from tt_jax.lab.experiment import _load

TINY = """
model = "{model}"
batch = 2
against = ["plain"]

[arms.plain]
retries = 0

[arms.top]
lam = -100.0
resample_noise = true

[stress.planted]
plant = {{ second = 1.3, rows = [1], columns = [1, 2], strength = 20.0 }}

[[studies]]
name = "tiny"
prompts = ["a cat", "a dog"]
seconds = 3
hosts = ["self-forcing"]
arms = ["plain", "top"]
stress = ["clean", "planted"]
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "keep_programs", lambda: None)
    _load.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("batch = 2", "batch = 2\nbacth = 2", "has no setting 'bacth'"),
        ('model = "shapes"', 'model = "nowhere"', "there is no model 'nowhere'"),
        ("columns = [1, 2]", "columns = [8]", "within the 8x8 tokens"),
        ("second = 1.3", "second = 2.9", "plants at 2.9 seconds, where a video of 3 ends"),
        ("second = 1.3", "second = 5", "plants at 5 seconds"),
        ('["self-forcing"]', '["rolling-forcing"]', "at least 5 blocks"),
        ("[stress.planted]", "[stress.planted]\nwindow = 3", "must be longer than sink plus chunk"),
        ("retries = 0", 'retries = 0\ncache = "window"', "'planted' needs the model's own window"),
    ],
)
def test_bad_input_writes_nothing(elsewhere, capsys, old, new, problem):
    given = TINY.format(model="shapes")
    assert old in given
    Path("it.toml").write_text(given.replace(old, new))
    assert cli.main(["lab", "run", "it.toml"]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert os.listdir() == ["it.toml"]


def test_a_model_that_fails_while_it_runs_is_one_sentence(
    elsewhere, tiny_model, capsys, monkeypatch
):
    def broken(cell, pipe):
        raise ModelError("the model is gone.")

    monkeypatch.setattr(make, "make", broken)
    monkeypatch.setattr(estimate, "hours", lambda *_: 0.0)
    Path("tiny.toml").write_text(TINY.format(model=tiny_model))
    assert cli.main(["lab", "run", "tiny.toml"]) == 1
    assert capsys.readouterr().err == "tt-jax: the model is gone.\n"


def test_no_folder_and_no_file(elsewhere, capsys):
    assert cli.main(["lab", "run", "none.toml"]) == 2
    assert cli.main(["lab", "report", "nowhere"]) == 2
    assert "there is no nowhere/results.csv" in capsys.readouterr().err
    assert os.listdir() == []


@pytest.mark.slow
def test_from_the_file_to_the_report(elsewhere, tiny_model, capsys):
    Path("tiny.toml").write_text(TINY.format(model=tiny_model))
    assert cli.main(["lab", "run", "tiny.toml"]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 cells are left" in out and "estimated: " in out
    assert out.splitlines()[-1] == "runs/tiny/results.csv"
    folder = Path("runs/tiny")
    record = json.loads((folder / "record.json").read_text())
    assert record[str(tiny_model)]["versions"]["jax"] == jax.__version__
    rows = table(folder)

    def severities(stress, arm):
        return [
            float(row["severity"] or "nan")
            for row in rows
            if (row["stress"], row["arm"], row["kind"], row["prompt"])
            == (stress, arm, "chunk", "a cat")
        ]

    # The plant comes after the second chunk (1.3125 s): until then nothing differs, then it shows.
    clean, planted = severities("clean", "plain"), severities("planted", "plain")
    assert len(clean) == 5
    np.testing.assert_array_equal(clean[:2], planted[:2])
    assert planted[2] != pytest.approx(clean[2], rel=1e-3)
    # The same noise until the first intervention, which comes with the fourth chunk.
    np.testing.assert_array_equal(clean[:4], severities("clean", "top")[:4])
    (video,) = [
        row for row in rows
        if (row["stress"], row["arm"], row["kind"], row["prompt"])
        == ("planted", "top", "video", "a cat")
    ]  # fmt: skip
    assert video["detected"] == "1" and float(video["recall"]) <= 1 and video["recovery"] == ""
    assert not any(row["lost"] for row in rows)

    before = contents(folder)
    assert cli.main(["lab", "run", "tiny.toml"]) == 0
    assert "left" not in capsys.readouterr().out
    assert contents(folder) == before
    assert cli.main(["lab", "report", "runs/tiny"]) == 0
    text = (folder / "report.md").read_text()
    assert "objects lost" not in text and "histogram drift: end" in text


@pytest.mark.slow
def test_the_committed_slice_reruns_with_the_same_numbers(elsewhere):
    file = Path(spec.__file__).parent / "experiments" / "smoke.toml"
    assert cli.main(["lab", "run", str(file), "--out", "smoke"]) == 0
    before = Path("smoke/results.csv").read_bytes()
    rows = table(Path("smoke"))
    assert {row["regime"] for row in rows} == {"small_moving", "medium"}
    assert any(row["arm"] == "top" and row["dropped"] not in ("", "0") for row in rows)
    assert any(row["recovery"] for row in rows) and any(row["lost"] for row in rows)
    first, *_ = sorted(Path("smoke/cells").iterdir())
    first.unlink()
    assert cli.main(["lab", "run", str(file), "--out", "smoke"]) == 0
    assert Path("smoke/results.csv").read_bytes() == before
    assert cli.main(["lab", "report", "smoke"]) == 0


@pytest.mark.slow
def test_the_videos_are_the_pipelines_own(tiny_model, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.format(model=tiny_model))
    cell = spec.read(path).cells[0]
    pipe = pipeline.load(tiny_model)
    made = make.make(cell, pipe)
    texts = [prompt.text for prompt in cell.prompts]
    video = pipe.generate(texts, seconds=3, seed=0, trim=cell.arm.trim)
    np.testing.assert_array_equal(made.frames, video.frames)
    assert made.starts == video.starts and made.planted is None
