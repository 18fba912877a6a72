import argparse
import json
import os
import shutil
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import PROMPT
from PIL import Image
from processes import frames, listing

import tt_jax
from tt_jax import pipeline, records
from tt_jax.cli import main as cli
from tt_jax.cli import output
from tt_jax.cli.run import script_of
from tt_jax.evaluate import summary
from tt_jax.media.write import write_video

pytestmark = pytest.mark.usefixtures("elsewhere")


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


# --- generate and compare -----------------------------------------------------------------------


@pytest.mark.slow
def test_generate(run, tiny_model):
    code, out, err = run(
        "generate", PROMPT, "--seconds", "2.8", "--seed", "3", "--p", "0.2", "--lam", "-100",
        "--out", "made",
    )  # fmt: skip
    assert (code, out) == (0, "made/video.mp4\n")
    first, second = err.splitlines()
    assert first.startswith("tt-jax: TokenTrim: intervened in 1 of 4 chunks; ")
    assert second == "tt-jax: picture: made/video.png; record: made/video.json"
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
def test_compare_of_many_caches(run):
    caches = ("window", "infinity-rope:frames=5", "mem-rope")
    given = [f"--cache={policy}" for policy in caches]
    arguments = ["compare", PROMPT, "--presets", "plain", *given, "--seconds", "0.6"]
    code, _, err = run(*arguments, "--out", "many")
    assert code == 0 and all(
        f"tt-jax: {policy}: 0 of 2 chunks abnormal" in err for policy in caches
    )
    assert listing("many") == [
        "compare-infinity-rope-frames-5.mp4", "compare-mem-rope.mp4", "compare-window.mp4",
        "compare.json", "compare.mp4", "compare.png",
    ]  # fmt: skip
    record = json.loads(Path("many/compare.json").read_text())
    assert list(record["strategy"]) == list(caches) == list(record["samples"][0]["alone"])
    assert record["strategy"]["infinity-rope:frames=5"]["cache"]["frames"] == 5
    with av.open("many/compare.mp4") as file:  # three beside one another, each 32 pixels times 8
        assert file.streams.video[0].width == 3 * 256 + 2 * 7


@pytest.mark.slow
@pytest.mark.usefixtures("exact")
def test_compare_uses_the_same_noise(run):
    code, _, err = run(
        "compare", PROMPT, "--seconds", "2.8", "--p", "0.2", "--lam", "-100", "--out", "both/it.mp4"
    )
    assert code == 0
    assert listing() == [
        "both/it-TokenTrim.mp4", "both/it-plain.mp4", "both/it.json", "both/it.mp4", "both/it.png",
    ]  # fmt: skip
    assert "plain: 1 of 4 chunks abnormal, none made again" in err
    assert "TokenTrim: intervened in 1 of 4 chunks" in err and "both/it-plain.mp4" in err
    assert frames("both/it.mp4") == 45
    # Each alone is measured, and its prompt found; the two together are not one video.
    alone = {"plain": "it-plain.mp4", "TokenTrim": "it-TokenTrim.mp4"}
    assert json.loads(Path("both/it.json").read_text())["samples"][0]["alone"] == alone
    for name in alone.values():
        path = Path("both") / name
        assert frames(path) == 45 and summary.read_prompts([path], None) == {path: PROMPT}
    with pytest.raises(ValueError, match="side by side"):
        summary.read_prompts([Path("both/it.mp4")], None)
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
    said = "tt-jax: warning: start.png was resized and centre-cropped from 80x50 to 32x32.\n"
    assert err.startswith(said)
    record = json.loads(Path("made/video.json").read_text())
    assert record["initial"]["file"] == "start.png" and len(record["initial"]["sha256"]) == 64


@pytest.mark.slow
def test_a_long_prompt_is_cut_and_that_is_said(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, _, err = run("generate", PROMPT + " and so on" * 9, "--seconds", "0.5")
    assert code == 0
    assert err.startswith("tt-jax: warning: Prompt 0 has ") and err.count("warning") == 1
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
        (["generate", "x", "--warmup", "0"], "warmup must be a whole number at least 1"),
        (["generate", "x", "--select", "none"], "resample_noise"),
        (["generate", "x", "--when", "never"], "invalid choice"),
        (["generate", "x", "--window", "3"], "longer than sink plus chunk"),
        (["generate", "x", "--cache", "deep"], "no cache policy 'deep'"),
        (["generate", "x", "--cache", "mem-rope:long=x"], "long is a number"),
        (["generate", "x", "--cache", "mem-rope", "--sink", "1"], "give either"),
        (["generate", "x", "--cache", "mem-rope", "--preset", "rolling-forcing"], "no cache"),
        (["generate", "x", "--window", "0"], "window must be a whole number at least 1"),
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
        (["generate", "x", "--size", "8192x8192", "--batch", "64"], "GB of main memory"),
        (["generate", "x", "--preset", "self"], "there is no preset 'self': give one of rolling"),
        (["compare", "x", "--presets", "self-forcing", "b"], "there is no preset 'b'"),
        (["compare", "x", "--presets", "plain", "plain"], "preset 'plain' is given twice"),
        (["compare", "x", "--cache", "window", "--cache", "window"], "'window' is given twice"),
        (["compare", "x", "--presets", "plain"], "a comparison needs two runs"),
        (["compare", "x", *(f"--cache=window:sink={i}" for i in range(7))], "7 caches are 14 runs"),
        (["generate", "x", "--preset", "rolling-forcing", "--sink", "3"], "an anchor of its own"),
        (
            ["generate", "x", "--preset", "rolling-forcing", "--seconds", "2"],
            "at least 2.875 seconds",
        ),
        (["generate", "x", "--no-trim", "--retries", "3"], "under plain, but --retries is given"),
        (
            ["generate", "x", "--no-trim", "--p", "0.2", "--prune-sink"],
            "--p, --prune-sink is given",
        ),
        (
            ["generate", "x", "--preset", "self-forcing", "--p", "0.2"],
            "self-forcing, but --p",
        ),
        (
            ["compare", "x", "--presets", "self-forcing", "rolling-forcing", "--lam", "1"],
            "--lam is",
        ),
        (["generate", "caf\udce9"], r"'caf\udce9' isn't UTF-8"),
        (["generate", "x", "--out", "caf\udce9"], r"'caf\udce9' isn't UTF-8"),
        (["generate", "x", "--seed", str(2**64)], "a seed is between"),
        (["generate", "x", "--seed", "1e3"], "invalid seed value"),
        (["generate", "x", "--out", "clip.webm"], "videos are written as .mp4, or give a folder"),
        (["generate", "x", "--out", "sub/foo.AVI"], "videos are written as .mp4, or give a folder"),
        (["generate", "x", "--out", "taken"], "taken/video.mp4 exists already"),
        (["generate", "x", "--out", "taken/video.mp4"], "taken/video.mp4 exists already"),
        (["generate", "x", "--out", "taken/other.mp4"], "taken/other.json exists already"),
        (["generate", "x", "--out", "taken/a.mp4", "--batch", "2"], "taken/a-1.png exists already"),
        (["compare", "x", "--out", "taken"], "taken/compare-plain.mp4 exists already"),
        (["generate"], "one of the arguments prompt --script --resume --prompts is"),
        (["generate", "x", "--script", "s.txt"], "not allowed with"),
        (["generate", "--resume", "taken"], "taken is no folder of a run that can go on"),
        (["generate", "x", "--resume", "taken"], "not allowed with"),
        (["generate", "x", "--out", "going"], "going/video.run is of a run that isn't finished"),
        (["generate", "x", "--save-every", "-1"], "at least 0"),
        (["generate", "--script", "s.txt"], "there is no file s.txt"),
        (["generate", "--script", "text.txt"], "line 1 of text.txt must be SECONDS PROMPT"),
        (["generate", "x [2s] | [2s]"], "scene 2 is empty"),
        (["generate", "x [2s] | y", "--seconds", "2"], "nothing is left of the video"),
        (["generate", "x [2s] | y [2s#]"], "has no switch 'cut': give one of none"),
        (
            ["generate", "x [2s] | y", "--switch", "flush"],
            "has no switch 'flush': give one of none",
        ),
        (["generate", "x", "--switch", "flush"], "--switch needs a second prompt"),
        (["generate", "--script", "text.txt", "--switch", "melt"], "invalid choice: 'melt'"),
        (["generate", "--prompts", "list.txt"], "there is no file list.txt"),
        (["generate", "--prompts", "l.csv"], "the first line of l.csv must name columns of prompt"),
        (["generate", "--prompts", "l.jsonl"], "no line can be made: line 1 of l.jsonl: it is no"),
        (["generate", "--prompts", "text.txt", "--out", "a.mp4"], "a.mp4 must be a folder"),
        (["generate", "x", "--mesh", "rows=2"], "of each axis of data, sequence, tensor"),
        (["generate", "x", "--mesh", "3"], "the mesh has 3 devices, and there are 1"),
        (["generate", "x", "--mesh", "data=2"], "there are 1"),
        (["generate", "x", "--coordinator", "a:1"], "need --coordinator, --processes, --process"),
        (["generate", "x", "--init-seconds", "1"], "give --init too"),
        (["generate", "x", "--strategy", "rolling-forcing", "--chunk", "4"], "leave --chunk out"),
        (
            ["generate", "x", "--preset", "self-forcing", "--strategy", "self-forcing"],
            "leave --strategy out",
        ),
        (["paint", "x"], "invalid choice: 'paint'"),
        ([], "required: COMMAND"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(run, arguments, message):
    Path("text.txt").write_text("no picture")
    Path("l.csv").write_text("prompt,colour\nx,red\n")
    Path("l.jsonl").write_text("{\n")
    Path("taken").mkdir()
    Path("going/video.run").mkdir(parents=True)
    for name in ("video.mp4", "other.json", "a-1.png", "compare-plain.mp4"):
        Path("taken", name).write_text("mine")
    if "start.mp4" in arguments:
        write_video("start.mp4", np.zeros((20, 64, 64, 3), np.uint8))
    before = listing()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tt-jax: ") and message in err and err.count("\n") == 1
    assert listing() == before


def test_what_becomes_of_the_cache_at_each_prompt():
    prompt = "x [2s] | y [2s#] | z [2s]"
    for asked, expected in ("flush", [None, "cut", "flush"]), (None, [None, "cut", None]):
        args = argparse.Namespace(script=None, prompt=prompt, seconds=None, switch=asked)
        script, _ = script_of(args)
        assert [change.how for change in script] == expected


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
    code, _, _ = run("generate", PROMPT, "--seconds", "0.5", go_on, model=folder)
    assert code == 0


# --- names of files -----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_runs_in_one_second(run, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    first = run("generate", PROMPT, "--seconds", "0.5")[1].strip()
    second = run("generate", PROMPT, "--seconds", "0.5")[1].strip()
    assert os.path.dirname(second) == os.path.dirname(first) + "-2"
    assert frames(first) == frames(second) == 8


@pytest.mark.slow
def test_a_name_that_was_taken_meanwhile(run, monkeypatch):
    """Two processes were given one name, which was free when both began."""
    Path("made").mkdir()
    taken = Path("made/video.json")
    monkeypatch.setattr(output, "refuse_existing", lambda _: taken.write_text("x"))
    code, out, _ = run("generate", PROMPT, "--seconds", "0.5", "--out", "made")
    assert (code, out) == (0, "made/video_2.mp4\n")
    assert listing("made") == ["video.json", "video_2.json", "video_2.mp4", "video_2.png"]
    assert taken.read_text() == "x"
    assert json.loads(Path("made/video_2.json").read_text())["samples"][0]["video"] == "video_2.mp4"


def test_a_name_is_claimed_by_one_of_many(tmp_path):
    plan = output.plan(tmp_path / "a.mp4", "", "video", samples=1)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: plan.claim(), range(8)))
    assert {o.path.name for o in made} == {"a.mp4", *(f"a_{n}.mp4" for n in range(2, 9))}
    assert all(one.unfinished.is_dir() for one in made)


@pytest.mark.parametrize(
    ("out", "path"),
    [
        ("clip.mp4", "clip.mp4"),
        ("clip.MP4", "clip.MP4"),
        ("cat", "cat/video.mp4"),
        ("v1.5", "v1.5/video.mp4"),
        ("made.avi", "made.avi/video.mp4"),  # a folder that is there
        ("made.mp4", "made.mp4/video.mp4"),
    ],
)
def test_what_out_means(out, path, tmp_path):
    for folder in ("made.avi", "made.mp4"):
        (tmp_path / folder).mkdir()
    assert output.plan(tmp_path / out, "", "video", samples=1).path == tmp_path / path


# --- the program --------------------------------------------------------------------------------


def test_the_process_is_left_as_it_was(run, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = dict(os.environ), signal.getsignal(signal.SIGINT), list(warnings.filters)
    values = jax.config.jax_compilation_cache_dir, jax.config.jax_platforms
    assert run("plan", "--device", "rtx4090", "--seconds", "1")[0] in (0, 1)
    assert run("generate", "")[0] == 2
    after = dict(os.environ), signal.getsignal(signal.SIGINT), list(warnings.filters)
    assert after == before
    assert values == (jax.config.jax_compilation_cache_dir, jax.config.jax_platforms)


def test_beside_the_main_thread(run):
    with ThreadPoolExecutor(1) as pool:
        code, _, err = pool.submit(run, "generate", "").result()
    assert code == 2 and "the prompt is empty" in err


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
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "save", full)
    code, _, err = run("generate", PROMPT, "--seconds", "0.5", "--out", "made")
    assert code == 1 and err.count("\n") == 1 and "No space left" in err
