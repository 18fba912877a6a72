import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import PROMPT
from PIL import Image

import tt_jax
from tt_jax import pipeline, records
from tt_jax.cli import main as cli
from tt_jax.cli.main import keep_programs
from tt_jax.media.write import write_video

# Processes find the package wherever they run.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(tt_jax.__file__).parents[1])}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every command runs in an empty folder, and its compiled programs are kept nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "keep_programs", lambda: None)


@pytest.fixture
def run(tiny_model, capsys):
    """Runs a command on the tiny model; returns exit code, stdout and stderr."""

    def call(*arguments, model=tiny_model):
        try:
            code = cli.main([*arguments, *(["--model", str(model)] if len(arguments) > 1 else [])])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def frames(path):
    with av.open(path) as file:
        return sum(1 for _ in file.decode(video=0))


def listing(folder="."):
    return sorted(os.path.relpath(os.path.join(where, name), folder)
                  for where, _, names in os.walk(folder) for name in names)  # fmt: skip


# --- generate and compare -----------------------------------------------------------------------


@pytest.mark.slow
def test_generate(run, tiny_model):
    code, out, err = run(
        "generate", PROMPT, "--seconds", "2.8", "--seed", "3", "--p", "0.2", "--lam", "-100",
        "--out", "made",
    )  # fmt: skip
    assert (code, out, err) == (0, "made/video.mp4\n", "")
    assert listing("made") == ["video.json", "video.mp4", "video.png"]
    assert frames("made/video.mp4") == 45
    record = json.loads(Path("made/video.json").read_text())
    assert record["frames"] == 45 and record["seed"] == 3 and record["prompt"] == PROMPT
    assert record["command"].startswith("tt-jax generate 'a small red circle")
    assert record["trim"]["TokenTrim"]["lam"] == -100
    assert record["strategy"]["TokenTrim"]["window"] == 9
    assert record["versions"]["jax"] == jax.__version__ and record["device"]["platform"] == "cpu"
    assert record["timings"]["TokenTrim"]["all_chunks"] > 0
    chunks = record["samples"][0]["TokenTrim"]
    assert [chunk["chunk"] for chunk in chunks] == [1, 2, 3, 4]
    assert chunks[0]["severity"] is None and chunks[0]["threshold"] is None
    assert [chunk["triggered"] for chunk in chunks] == [False, False, False, True]
    assert chunks[3]["dropped"] == 4 / 16 and chunks[3]["kept_fraction"] < 1
    assert chunks[-1]["end"] == 45 / 16
    # The record is enough to make the video again.
    trim = tt_jax.TokenTrim(**{k: v for k, v in record["trim"]["TokenTrim"].items() if k != "name"})
    again = tt_jax.load(tiny_model).generate(
        record["prompt"], seconds=record["seconds"], seed=record["seed"], trim=trim
    )
    severity = [chunk["severity"] for chunk in chunks[1:]]
    np.testing.assert_allclose(again.rollout.severity[0, 1:], severity, rtol=1e-6)


@pytest.mark.slow
def test_compare_uses_the_same_noise(run):
    code, _, err = run(
        "compare", PROMPT, "--seconds", "2.8", "--p", "0.2", "--lam", "-100", "--out", "both/it.mp4"
    )
    assert (code, err) == (0, "")
    assert listing() == ["both/it.json", "both/it.mp4", "both/it.png"]
    assert frames("both/it.mp4") == 45
    sample = json.loads(Path("both/it.json").read_text())["samples"][0]
    plain, trimmed = sample["plain"], sample["TokenTrim"]
    assert [c["severity"] for c in plain] == [c["severity"] for c in trimmed]  # the first attempts
    assert plain[3]["dropped"] == 0 and trimmed[3]["dropped"] > 0
    assert plain[3]["accepted_severity"] != trimmed[3]["accepted_severity"]


@pytest.mark.slow
def test_a_batch_and_the_default_folder(run):
    code, out, _ = run("generate", "A red/blue  circle!", "--seconds", "0.5", "--batch", "2",
                       "--no-trim")  # fmt: skip
    first, second = out.split()
    assert code == 0 and first.startswith("runs/20") and "-a-red-blue-circle/" in first
    assert (os.path.basename(first), os.path.basename(second)) == ("video-0.mp4", "video-1.mp4")
    assert sorted(os.listdir(os.path.dirname(first))) == [
        "video-0.mp4", "video-0.png", "video-1.mp4", "video-1.png", "video.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_start_from_a_picture_of_another_size(run):
    Image.fromarray(np.full((50, 80, 3), 200, np.uint8)).save("start.png")
    code, _, err = run("generate", PROMPT, "--seconds", "1", "--init", "start.png", "--out", "made")
    assert code == 0 and frames("made/video.mp4") == 16
    assert err == "tt-jax: warning: start.png was resized and centre-cropped from 80x50 to 32x32.\n"
    record = json.loads(Path("made/video.json").read_text())
    assert record["initial"]["file"] == "start.png" and len(record["initial"]["sha256"]) == 64


def test_a_long_prompt_is_cut_and_that_is_said(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, _, err = run("generate", PROMPT + " and so on" * 9, "--seconds", "0.5")
    assert code == 0
    assert err.startswith("tt-jax: warning: Prompt 0 has ") and err.count("\n") == 1
    assert "everything from '" in err and "left out" in err


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "  \n "], "prompt is empty"),
        (["compare", ""], "prompt is empty"),
        (["generate", "x", "--seconds", "0"], "at least one frame"),
        (["generate", "x", "--seconds", "-3"], "at least one frame"),
        (["generate", "x", "--seconds", "nan"], "at least one frame"),
        (["generate", "x", "--seconds", "soon"], "invalid float"),
        (["generate", "x", "--p", "0"], "between 0 and 1"),
        (["generate", "x", "--p", "1"], "between 0 and 1"),
        (["generate", "x", "--p", "nan"], "between 0 and 1"),
        (["generate", "x", "--lam", "nan"], "finite number"),
        (["generate", "x", "--lam", "much"], "invalid finite value"),
        (["generate", "x", "--warmup", "0"], "warmup must be at least 1"),
        (["generate", "x", "--select", "none"], "resample_noise"),
        (["generate", "x", "--when", "never"], "invalid choice"),
        (["generate", "x", "--window", "3"], "longer than sink plus chunk"),
        (["generate", "x", "--window", "0"], "longer than sink plus chunk"),
        (["generate", "x", "--seed", "-1"], "a seed is between"),
        (["generate", "x", "--batch", "0"], "at least 1"),
        (["generate", "x", "--size", "big"], "WIDTHxHEIGHT"),
        (["generate", "x", "--size", "33x32"], "multiples of 8"),
        (["generate", "x", "--size", "0x0"], "multiples of 8"),
        (["generate", "x", "--init", "nothing.png"], "there is no file nothing.png"),
        (["generate", "x", "--init", "text.txt"], "text.txt is neither a picture nor a video"),
        (["generate", "x", "--init", "."], "there is no file ."),
        (["generate", "x", "--init", "start.mp4", "--seconds", "0.5"], "fills all 8 frames"),
        (["generate", "x", "--out", "text.txt/here"], "text.txt/here can't be written"),
        (["generate", "x", "--out", "/proc/here"], "/proc/here can't be written"),
        (["generate", "x", "--seconds", "1e9"], "GB of main memory"),
        (["generate", "x", "--size", "8192x8192", "--batch", "64"], "GB of main memory"),
        (["generate", "x", "--preset", "self"], "there is no preset 'self': give one of rolling"),
        (["compare", "x", "--presets", "self-forcing", "b"], "there is no preset 'b'"),
        (["compare", "x", "--presets", "self-forcing", "self-forcing"], "two different presets"),
        (["generate", "x", "--preset", "rolling-forcing", "--sink", "3"], "an anchor of its own"),
        (["generate", "x", "--preset", "rolling-forcing", "--seconds", "2"], "at least 5 blocks"),
        (["generate"], "required: prompt"),
        (["paint", "x"], "invalid choice: 'paint'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(run, arguments, message):
    Path("text.txt").write_text("no picture")
    if "start.mp4" in arguments:
        write_video("start.mp4", np.zeros((20, 64, 64, 3), np.uint8))
    before = listing()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tt-jax: ") and message in err and err.count("\n") == 1
    assert listing() == before


def test_an_unknown_model(run):
    code, _, err = run("generate", "x", model="wan3")
    assert code == 2 and err.count("\n") == 1
    assert "there is no model 'wan3'" in err and "'shapes'" in err


def test_a_bidirectional_model_needs_to_be_allowed(run, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "wan")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"kind": "bidirectional"}))
    code, _, err = run("generate", PROMPT, "--seconds", "0.5", model=folder)
    assert code == 2 and "Self Forcing" in err and "--allow-bidirectional" in err
    assert not (tmp_path / "runs").exists()
    go_on = "--allow-bidirectional"
    code, _, err = run("generate", PROMPT, "--seconds", "0.5", go_on, model=folder)
    assert (code, err) == (0, "")


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    assert {"generate", "compare"} <= set(capsys.readouterr().out.split())


# --- failures on the way ------------------------------------------------------------------------


def test_latents_that_are_not_finite(run, monkeypatch):
    real = pipeline.stream_latents

    def spoilt(*args, **settings):
        for out in real(*args, **settings):
            yield type(out)(**vars(out) | {"latents": out.latents * jnp.nan})

    monkeypatch.setattr(pipeline, "stream_latents", spoilt)
    code, out, err = run("generate", PROMPT, "--seconds", "0.5", "--out", "made")
    assert (code, out) == (1, "")
    assert err == "tt-jax: the latents of chunk 1 aren't finite: the run stops there.\n"
    assert listing() == []


def test_a_full_disk(run, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "save", full)
    code, _, err = run("generate", PROMPT, "--seconds", "0.5", "--out", "made")
    assert code == 1 and err.count("\n") == 1 and "No space left" in err


def interrupt(tiny_model, tmp_path, when, seconds, wrapper=("-m", "tt_jax")):
    """Starts a process and sends it SIGINT once `when()`; it ends with one line and 130."""
    command = [sys.executable, *wrapper, "generate", PROMPT, "--model", str(tiny_model),
               "--seconds", str(seconds), "--out", "made"]  # fmt: skip
    environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not when():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # On a busy machine, libraries may have complained of its slowness before.
    assert process.returncode == 130 and "Traceback" not in err
    assert err.endswith("tt-jax: interrupted.\n") and err.count("tt-jax:") == 1


@pytest.mark.slow
def test_an_interrupt_while_generating(tiny_model, tmp_path):
    compiled = tmp_path / "cache" / "tt-jax" / "programs"
    interrupt(tiny_model, tmp_path, lambda: any(compiled.glob("*rollout*")), seconds=9000)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_an_interrupt_while_writing(tiny_model, tmp_path):
    """Pictures take for ever here; the video is there already."""
    slow = """
import sys, time
from tt_jax.cli.main import main
from tt_jax.files import atomic
from tt_jax.plots import style
def save(figure, path):
    with atomic(path) as aside:
        aside.write_text("half")
        time.sleep(1000)
style.save = save
sys.exit(main())
"""
    half = tmp_path / "made"
    interrupt(tiny_model, tmp_path, lambda: any(half.glob(".*.png")), 0.5, wrapper=("-c", slow))
    assert listing("made") == ["video.mp4"] and frames("made/video.mp4") == 8


# --- cache -------------------------------------------------------------------------------------


def test_compiled_programs_are_kept(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "tt-jax" / "programs")
        jax.config.update("jax_compilation_cache_dir", "/else/where")
        keep_programs()
        assert jax.config.jax_compilation_cache_dir == "/else/where"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
