"""`tt-jax generate --prompts`: a folder of videos with an index."""

import csv
import json
import os
import socket
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
a green cross,5,two
a green cross,6,
a small red circle,9,../x
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "EVERY", 1e9)


def severities(record, label="TokenTrim"):
    return [chunk["severity"] or 0 for chunk in record["samples"][0][label]]


@pytest.mark.slow
def test_a_folder_of_videos(capsys, monkeypatch):
    Path("list.csv").write_text(LIST)
    command = ["generate", "--prompts", "list.csv", "--model", "shapes", *SETTINGS]
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
    pipe = tt_jax.load("shapes")
    trim = tt_jax.TokenTrim(p=0.2, lam=-100.0, warmup=1)
    alone = pipe.generate("a large blue square", seconds=1.3, seed=4, trim=trim)
    measured = np.nan_to_num(alone.rollout.numbers()["severity"][0])
    np.testing.assert_allclose(severities(two), measured, rtol=1e-5)

    assert cli.main([*command, "--window", "6"]) == 2
    assert "made was begun with another strategy" in capsys.readouterr().err
    Path("list.csv").write_text("prompt,seed,name\na green cross,3,one\n")
    assert cli.main(command) == 1
    assert "line 2 of list.csv: made/one.json is of another video" in capsys.readouterr().err


def test_no_seconds_are_no_default(capsys):
    Path("list.txt").write_text("a green cross [2s]\n")
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


KEEPING = """
import sys
import jax
import numpy as np
from tt_jax.cli.main import main
from tt_jax.cli.take import Take
made, add = [], Take.add
def kept(self, chunk):
    made.append(chunk.frames)
    add(self, chunk)
Take.add = kept
code = main()
np.save(f"{sys.argv[-1]}-{jax.process_index()}.npy", np.concatenate(made, axis=1))
sys.exit(code)
"""


def started(devices, *options):
    """Begins a run of two videos, in a process that has so many devices; the last option is the
    folder's name, beside which it keeps the frames as no encoder has changed them."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(tt_jax.__file__).parents[1]), "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    command = ["generate", "a small red circle", "--model", "shapes", *SETTINGS, "--batch", "2"]
    return subprocess.Popen(
        [sys.executable, "-c", KEEPING, *command, *options], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of the videos that one device makes."""
    folder = tmp_path_factory.mktemp("one") / "one"
    finished(started(1, "--mesh", "1", "--out", str(folder)))
    return folder


def agree(folder, one, process=0):
    """What several devices made is what one makes: all it measured, and each frame."""
    mine, right = (json.loads((path / "video.json").read_text()) for path in (folder, one))
    assert max(severities(right)) > 0.1
    np.testing.assert_allclose(severities(mine), severities(right), rtol=1e-6)
    frames, same = np.load(f"{folder}-{process}.npy"), np.load(f"{one}-0.npy")
    assert frames.shape == (2, 21, 64, 64, 3)
    apart = np.abs(frames.astype(int) - same)
    assert apart.max() <= 1 and apart.mean() < 1e-3  # where a value is rounded
    return mine["device"]["mesh"]


@pytest.mark.slow
def test_a_mesh_of_eight_devices(one):
    finished(started(8, "--mesh", "data=2,sequence=4", "--out", "eight"))
    assert agree(Path("eight"), one) == {"data": 2, "sequence": 4, "tensor": 1}


@pytest.mark.slow
def test_two_processes(one):
    """Each with a device, of which the first writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    shared = ("--mesh", "sequence=2", "--coordinator", where, "--processes", "2", "--process")
    both = [started(1, *shared, str(i), "--out", "two") for i in range(2)]
    first, second = (finished(process) for process in both)
    # Gloo has a line of its own in both.
    assert first.endswith("two/video-0.mp4\ntwo/video-1.mp4\n") and "mp4" not in second
    for process in range(2):
        assert agree(Path("two"), one, process) == {"data": 1, "sequence": 2, "tensor": 1}
    assert len(list(Path("two").iterdir())) == 5  # two videos, two pictures, a record
