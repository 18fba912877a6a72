"""`tt-jax generate --prompts`: a folder of videos with an index."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from quick import FLAGS

import tt_jax
from tt_jax import records
from tt_jax.cli import main as cli
from tt_jax.cli import progress
from tt_jax.cli.prompt_file import read
from tt_jax.media.read import read_frames

SETTINGS = ("--seconds", "1.3", "--p", "0.2", "--lam", "-100", "--warmup", "1")
LIST = """prompt,seed,name
a small red circle,3,one
a large blue square,4,Two
,x,
a green star,5,two
a green star,6,
a small red circle,9,../x
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "EVERY", 1e9)


def severities(record, label="TokenTrim"):
    return [chunk["severity"] or 0 for chunk in record["samples"][0][label]]


@pytest.mark.slow
def test_a_folder_of_videos(tiny_model, capsys, monkeypatch):
    Path("list.csv").write_text(LIST)
    command = ["generate", "--prompts", "list.csv", "--model", str(tiny_model), *SETTINGS]
    command += ["--batch", "2", "--out", "made"]
    real, saved = records.save, []

    def full(path, record, **settings):  # the disk, at the third video's record
        saved.append(path.name)
        if len(saved) == 5:
            raise OSError(28, "No space left on device")
        real(path, record, **settings)

    monkeypatch.setattr(records, "save", full)
    assert cli.main(command) == 1
    err = capsys.readouterr().err.splitlines()
    assert "line 4 of list.csv: the prompt is empty" in err[0]
    assert "line 5 of list.csv: the name 'two' is that of line 3." in err[1]
    assert "line 7 of list.csv: '../x' is no name for files" in err[2]
    assert err[-1].endswith("No space left on device") and len(err) == 5
    before = {path.name: path.stat().st_mtime_ns for path in Path("made").glob("*.mp4")}
    assert {"one.mp4", "Two.mp4"} <= before.keys()

    monkeypatch.setattr(records, "save", real)
    assert cli.main(command) == 1  # the bad lines
    out, err = capsys.readouterr()
    assert out == "made/index.csv\n" and "finished before: 2 of 3 videos." in err
    assert all(Path("made", name).stat().st_mtime_ns == at for name, at in before.items()
               if name in ("one.mp4", "Two.mp4"))  # fmt: skip
    with open("made/index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} > {"Two", "one"} and len(rows) == 3
    for row in rows:
        assert len(list(read_frames(Path("made", row["file"])))) == 21
        assert Path("made", row["picture"]).exists() and float(row["highest_severity"]) > 0
    assert not [path for path in Path("made").iterdir() if path.suffix == ".run"]

    # Alone, a video is what it is beside others.
    two = json.loads(Path("made/Two.json").read_text(encoding="utf-8"))
    pipe = tt_jax.load(tiny_model)
    trim = tt_jax.TokenTrim(p=0.2, lam=-100.0, warmup=1)
    alone = pipe.generate("a large blue square", seconds=1.3, seed=4, trim=trim)
    measured = np.nan_to_num(alone.rollout.numbers()["severity"][0])
    np.testing.assert_allclose(severities(two), measured, rtol=1e-5)

    assert cli.main([*command, "--window", "6"]) == 2
    assert "made was begun with another strategy" in capsys.readouterr().err
    Path("list.csv").write_text("prompt,seed,name\na green star,3,one\n")
    assert cli.main(command) == 1
    assert "line 2 of list.csv: made/one.json is of another video" in capsys.readouterr().err


def test_no_seconds_are_no_default(capsys):
    Path("list.txt").write_text("a green star [2s]\n")
    assert cli.main(["generate", "--prompts", "list.txt", "--seconds", "0"]) == 2
    assert "seconds for at least one frame, not 0" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["list.txt"]


def test_names_depend_on_nothing_but_the_video(tmp_path):
    lines, objects = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("a cat\n\na dog [2s] | a bird [1s]\na cat\n")
    objects.write_text('{"prompt": "a dog [2s] | a bird [1s]"}\n[]\n{"prompt": "x", "seed": 1.5}\n')
    items, wrong = read(lines, 7)
    assert [item.line for item in items] == [1, 3] and items[1].seconds == 3
    assert len(wrong) == 1 and "line 4" in wrong[0] and "that of line 1" not in wrong[0]
    others, wrong = read(objects, 7)
    assert [item.name for item in others] == [items[1].name] and len(wrong) == 2
    assert "line 2" in wrong[0] and "whole number" in wrong[1]


@pytest.mark.slow
def test_a_mesh_of_eight_devices(tiny_model, tmp_path):
    """From the command line, in processes that have them."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(tt_jax.__file__).parents[1]), "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count=8",
    }  # fmt: skip
    records = {}
    for mesh in ("1", "data=2,sequence=2,tensor=2"):
        command = ["generate", "a small red circle", "--model", str(tiny_model), *SETTINGS]
        command += ["--batch", "2", "--mesh", mesh, "--out", f"mesh{mesh}"]
        done = subprocess.run(
            [sys.executable, "-m", "tt_jax", *command], env=environment, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        records[mesh] = json.loads(Path(f"mesh{mesh}/video.json").read_text())
    one, eight = map(severities, records.values())
    assert max(one) > 0.1
    np.testing.assert_allclose(one, eight, rtol=1e-6)
    assert records["data=2,sequence=2,tensor=2"]["device"]["mesh"]["tensor"] == 2
