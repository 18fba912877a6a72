"""Measures on videos whose answers are known; the published pairs; the report; VBench."""

import csv
import json
import shutil
import sys
import time
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
from recorded import SHARED

from tt_jax.cli.main import main
from tt_jax.evaluate import measures, summary, vbench
from tt_jax.evaluate.measures import CONTRASTS, CURVES, contrasts, measure
from tt_jax.media.write import write_video

PAIRS = SHARED / "data" / "pairs"


def grey(levels, size=(32, 48)):
    """Frames of one grey each."""
    return [np.full((*size, 3), level, np.uint8) for level in levels]


# --- measures on synthetic videos ---------------------------------------------------------------


def test_constant():
    frame = np.empty((32, 48, 3), np.uint8)
    frame[:] = (10, 200, 30)
    got = measure([frame] * 40, 10)
    assert (got.fps, got.frames) == (10, 40)
    assert got.temporal_flickering == 100
    assert all(abs(value) < 1e-9 for name, value in got.values.items() if "flick" not in name)
    assert {name: len(curve) for name, curve in got.curves.items()} == dict.fromkeys(CURVES, 4)


def test_fade():
    # Grey 0, 20, ..., 100, a second each: bins 0 0 1 1 2 3 of width 31.875.
    got = measure(grey(np.repeat(np.arange(0, 101, 20), 4)), 4)
    root = 3**0.5
    np.testing.assert_allclose(got.temporal_flickering, 100 * (1 - 5 * 20 / 23 / 255))
    # A second's first frame brings the jump into it; the very first one changes as the next.
    jumps = np.array([0, 20, 20, 20, 20, 20]) / 4
    np.testing.assert_allclose(got.curves["temporal_flickering"], 100 * (1 - jumps / 255))
    np.testing.assert_allclose(got.curves["histogram_drift"], [0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(got.histogram_drift_all, 4 / 6)
    assert got.histogram_drift_end == 1
    np.testing.assert_allclose(got.colour_drift, 80 / 255 * root)
    curve = np.array([10, 10, 30, 50, 70, 90]) / 255 * root
    np.testing.assert_allclose(got.curves["colour_drift"], curve)
    # Six seconds: the halves stand for the first and last five; 15 % are 0.9 s.
    change = (50 - 210) / 3 / 255 * root
    wanted = [change, -change, 80 / 255 * root]
    for kind, value in zip(CONTRASTS, wanted, strict=True):
        np.testing.assert_allclose(got.values[f"colour_drift, {kind}"], value)


def test_jump_of_half_the_frame():
    before, after = np.zeros((2, 32, 64, 3), np.uint8)
    after[:, :32] = 255
    got = measure([before] * 16 + [after] * 16, 8)
    np.testing.assert_allclose(got.temporal_flickering, 100 * (1 - 0.5 / 31))
    np.testing.assert_allclose(got.curves["histogram_drift"], [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(got.histogram_drift_end, 1 / 3)
    np.testing.assert_allclose(got.histogram_drift_all, 0.25)
    np.testing.assert_allclose(got.colour_drift, 0.5 * 3**0.5)


def test_noise():
    rng = np.random.default_rng(0)
    got = measure((rng.integers(0, 100, (64, 64, 3), np.uint8) for _ in range(60)), 10)
    # Two even draws of 0 .. 99 are 33.33 apart; their variance is 833.25.
    np.testing.assert_allclose(got.temporal_flickering, 100 * (1 - 33.33 / 255), rtol=1e-3)
    # A cell's mean stays inside one bin, however its pixels jump.
    assert got.histogram_drift_all == 0
    assert got.colour_drift < 0.003
    luma = 833.25 * (0.299**2 + 0.587**2 + 0.114**2)
    np.testing.assert_allclose(got.sharpness, (4 + 16) * luma, rtol=0.03)


def texture(shift, side=128):
    """A smooth pattern, moved to the right by `shift` pixels."""
    y, x = np.mgrid[:side, :side]
    wave = np.sin((x - shift) / 5) + np.sin(y / 6) + np.sin((x - shift + y) / 9)
    return np.repeat((127 + 40 * wave)[..., None], 3, axis=2).round().astype(np.uint8)


@pytest.mark.parametrize("method", ["Farneback", "Lucas-Kanade"])
@pytest.mark.parametrize("speed", [0, 0.5, 1.5])
def test_motion(monkeypatch, method, speed):
    if method == "Farneback":
        pytest.importorskip("cv2", reason="the extra 'eval' isn't installed")
    else:
        monkeypatch.setitem(sys.modules, "cv2", None)
    got = measure([texture(speed * t) for t in range(24)], 8)
    assert got.flow == method
    np.testing.assert_allclose(got.motion, 100 * 8 * speed / 128, rtol=0.12, atol=0.05)


def test_motion_does_not_depend_on_the_resolution(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    small = [texture(t) for t in range(24)]
    large = [frame.repeat(4, axis=0).repeat(4, axis=1) for frame in small]
    np.testing.assert_allclose(measure(large, 8).motion, measure(small, 8).motion, rtol=1e-4)


def test_sharpness_of_a_blurred_texture_is_lower():
    rng = np.random.default_rng(1)
    sharp = rng.integers(0, 256, (64, 64, 3), np.uint8)
    soft = sharp.astype(np.float32)
    soft = ((soft + np.roll(soft, 1, 0) + np.roll(soft, 1, 1)) / 3).astype(np.uint8)
    got = measure([sharp] * 16 + [soft] * 16, 8)
    first, *_, last = got.curves["sharpness"]
    assert last < 0.5 * first
    np.testing.assert_allclose(got.values[f"sharpness, {CONTRASTS[0]}"], first - last)


def test_only_whole_seconds_count():
    # At 30000/1001 a second ends between two frames; 121 frames are four of them and a rest.
    rate = Fraction(30000, 1001)
    levels = (np.arange(121) * 1001 // 30000) * 60
    got = measure(grey(levels[:120]), rate)
    np.testing.assert_allclose(got.curves["colour_drift"][-2:], np.array([90, 150]) / 255 * 3**0.5)
    rest = measure(grey([*levels[:120], 0]), rate)
    for name in CURVES:
        np.testing.assert_array_equal(rest.curves[name], got.curves[name])
    assert rest.temporal_flickering < got.temporal_flickering


def test_frames_are_not_kept():
    def frames():
        for t in range(100):
            yield np.full((256, 256, 3), t, np.uint8)

    measure(frames(), 25)  # whatever is loaded once
    tracemalloc.start()
    measure(frames(), 25)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 100 * 256 * 256 * 3


def test_contrasts_by_hand():
    def got(seconds):
        return list(contrasts(np.arange(float(seconds))).values())

    np.testing.assert_allclose(got(20), [2 - 17, 15, 18 - 1])
    # 15 % of 30 s are 4.5 s: the fifth second counts by half.
    edge = (0 + 1 + 2 + 3 + 4 / 2) / 4.5
    np.testing.assert_allclose(got(30), [2 - 27, 25, 29 - 2 * edge])
    # 3 s: halves of 1.5 s; 15 % lie within the first and the last second.
    edge = (0 + 1 / 2) / 1.5
    np.testing.assert_allclose(got(3), [2 * edge - 2, 2 - 2 * edge, 2])


# --- files --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted"),
    {
        "girl_walking_self": (97.067, 0.656, 0.461, 0.320),
        "girl_walking_ours": (97.754, 0.342, 0.260, 0.102),
        "smoke_rolling": (None, 0.336, None, None),
        "smoke_ours": (None, 0.525, None, None),
    }.items(),
)
def test_published_pairs(name, wanted):
    path = PAIRS / f"{name}.mp4"
    if not path.is_file():
        pytest.skip("the authors' videos aren't here")
    (got,) = measures.measure_files([path])
    assert got.frames == 482
    fields = ("temporal_flickering", "histogram_drift_end", "histogram_drift_all", "colour_drift")
    for field, value in zip(fields, wanted, strict=True):
        if value is not None:
            assert round(getattr(got, field), 3) == value, field


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folder of short videos, some of them unfit."""
    folder = tmp_path_factory.mktemp("clips")
    for name, level, frames, fps in [
        ("dark", 40, 64, 16), ("light", 200, 64, 16), ("brief", 40, 47, 16), ("slow", 40, 32, 8)
    ]:  # fmt: skip
        write_video(folder / f"{name}.mp4", np.stack(grey([level] * frames, (64, 64))), fps)
    (folder / "text.mp4").write_text("this is no video")
    (folder / "text.txt").write_text("nor is this")
    whole = (folder / "dark.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return folder


def test_report(clips, tmp_path, capsys):
    files = [str(clips / "dark.mp4"), str(clips / "light.mp4")]
    assert main(["eval", *files, "--out", str(tmp_path / "new" / "out")]) == 0
    printed = capsys.readouterr().out
    assert "temporal flickering, %" in printed and "100.000" in printed
    method = measures.optical_flow()[0]
    assert f"motion, % of the height a second, {method}" in printed
    folder = tmp_path / "new" / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["eval.csv", "eval.png"]
    rows = list(csv.DictReader((folder / "eval.csv").read_text().splitlines()))
    # Of each video: 6 numbers, 3 contrasts of 5 curves, 4 seconds of each.
    assert len(rows) == 2 * (6 + 15 + 20)
    assert {row["method"] for row in rows if row["measure"] == "motion"} == {method}
    row = next(r for r in rows if r["file"] == "light" and r["measure"] == "colour_drift")
    assert (row["contrast"], row["second"]) == ("", "") and abs(float(row["value"])) < 1e-3
    assert {r["contrast"] for r in rows} == {"", *CONTRASTS}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["nowhere.mp4"], "there is no file"),
        (["dark.mp4", "text.mp4"], "text.mp4 is neither a picture nor a video."),
        (["text.txt"], "text.txt is neither a picture nor a video."),
        (["cut.mp4"], "cut.mp4 is"),
        (["light.mp4", "brief.mp4"], "brief.mp4 is shorter than three seconds."),
        (["dark.mp4", "slow.mp4"], "slow.mp4 has 8 frames a second, "),
        (["dark.mp4", "dark.mp4"], "dark.mp4 is given twice."),
    ],
)
def test_bad_input_is_one_sentence(clips, tmp_path, capsys, files, said):
    out = tmp_path / "out"
    assert main(["eval", *(str(clips / name) for name in files), "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "taken"], "taken/eval.png exists already"),
        (["--out", "dark.mp4"], "can't be written"),
        (["--vbench-layout", "new", "--out", "other"], "leave --out away"),
        (["--vbench-mode", "standard"], "are for --vbench-layout"),
        (["--prompts", "none.json"], "are for --vbench-layout"),
    ],
)
def test_options_that_cannot_be(clips, tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "eval.png").write_text("mine")
    shutil.copy(clips / "dark.mp4", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["eval", "dark.mp4", *options]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert sorted(tmp_path.rglob("*")) == before


def test_two_tables_in_one_second(clips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    for _ in range(2):
        assert main(["eval", str(clips / "dark.mp4")]) == 0
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["20260101-000000-eval", "20260101-000000-eval-2"]


def test_a_film_of_uneven_frames_is_measured_by_the_clock(tmp_path):
    """Grey for two seconds of 4 frames each, then lighter for two of 28: per second, not frame."""
    path = tmp_path / "a.mkv"
    levels = [(250 * i, 60) for i in range(8)] + [(2000 + 1000 * i // 28, 180) for i in range(56)]
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=16)
        stream.height = stream.width = 64
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
        for time_, level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8))
            frame.pts, frame.time_base = time_, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    (got,) = measures.measure_files([path])
    assert abs(got.frames / got.fps - 4) < 0.1
    wanted = np.sqrt(3) * np.array([0, 0, 120, 120]) / 255
    # One of the 32 frames that a drift compares may lie beyond the border: 1.1 frames are allowed.
    np.testing.assert_allclose(got.curves["colour_drift"][:4], wanted, atol=0.03)


def test_names_of_any_script_and_sign(clips, tmp_path, capsys):
    odd = tmp_path / "$a$ \ue123.mp4"
    shutil.copy(clips / "dark.mp4", odd)
    assert main(["eval", str(odd), "--out", str(tmp_path / "out")]) == 0
    assert "no installed font has \ue123" in capsys.readouterr().err


def test_labels_tell_files_apart(tmp_path):
    a, b = tmp_path / "a" / "x.mp4", tmp_path / "b" / "x.mp4"
    assert summary.labels([a, b]) == [str(a), str(b)]
    assert summary.labels([a, b.with_stem("y")]) == ["x", "y"]


def test_too_small_or_too_slow():
    with pytest.raises(ValueError, match="at least 16x16"):
        measure(grey([1] * 40, (15, 40)), 10)
    with pytest.raises(ValueError, match="fewer than one frame"):
        measure(grey([1] * 40), 0.5)


# --- VBench -------------------------------------------------------------------------------------


def spread(quality, semantic):
    """Scores of which every normalised one is `quality` or `semantic`."""
    groups = ((vbench.QUALITY, quality), (vbench.SEMANTIC, semantic))
    return {
        name: worst + share * (best - worst)
        for group, share in groups
        for name, (worst, best) in group.items()
    }


def test_aggregate_by_hand():
    for quality, semantic in [(0, 0), (1, 1), (0.8140, 0.7158), (0.8325, 0.7306)]:
        got = vbench.aggregate(spread(quality, semantic))
        wanted = (quality, semantic, (4 * quality + semantic) / 5)
        np.testing.assert_allclose((got.quality, got.semantic, got.total), wanted, atol=1e-12)
    # Dynamic degree weighs half: 0.5 of 6.5.
    got = vbench.aggregate(spread(0, 0) | {"dynamic_degree": 1.0, "scene": 0.4111})
    np.testing.assert_allclose(got.quality, 0.5 / 6.5)
    np.testing.assert_allclose(got.semantic, 0.5 / 9)
    np.testing.assert_allclose(got.total, (4 * 0.5 / 6.5 + 0.5 / 9) / 5)


def test_aggregate_normalises_the_figures_quoted_from_the_paper():
    # Rolling Forcing's flicker, smoothness, dynamic degree, overall consistency; the rest at worst.
    quoted = {
        "temporal_flickering": 0.9677,
        "motion_smoothness": 0.9721,
        "dynamic_degree": 0.5957,
        "overall_consistency": 0.2492,
    }
    got = vbench.aggregate(spread(0, 0) | quoted)
    flicker, smooth = (0.9677 - 0.6293) / 0.3707, (0.9721 - 0.706) / 0.2915
    np.testing.assert_allclose(got.quality, (flicker + smooth + 0.5 * 0.5957) / 6.5)
    np.testing.assert_allclose(got.semantic, 0.2492 / 0.364 / 9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("scene"), "without a score: scene."),
        (lambda s: s.update(taste=1.0), "unknown to VBench: taste."),
        (lambda s: s.update(color=81.2), "not between 0 and 1: color."),
        (lambda s: s.update(color=float("nan")), "not between 0 and 1: color."),
    ],
)
def test_aggregate_refuses(change, said):
    scores = spread(0.5, 0.5)
    change(scores)
    with pytest.raises(ValueError, match=said):
        vbench.aggregate(scores)


def test_names():
    long = "an old lighthouse " * 20
    assert vbench.names(["a cat.", "a dog", "a cat."], "standard") == [
        "a cat.-0.mp4", "a dog-0.mp4", "a cat.-1.mp4"
    ]  # fmt: skip
    first, second, third = vbench.names([long + "by day", long + "at night", "24/7"], "custom")
    assert first == long[:180].rstrip() + "-0.mp4" and second == first.replace("-0", "-1")
    assert third == "24 7-0.mp4"
    assert all(len(n.encode()) < 200 for n in vbench.names(["灯塔" * 100], "custom"))
    for prompt in (long, "24/7"):
        with pytest.raises(ValueError, match="original prompts"):
            vbench.names([prompt], "standard")


def record(folder, videos, prompt, runs=("TokenTrim",)):
    """What `tt-jax generate` writes beside its videos, as far as it matters here."""
    text = {
        "prompt": prompt,
        "trim": {run: {} for run in runs},
        "samples": [{"video": name} for name in videos],
    }
    (folder / "record.json").write_text(json.dumps(text))


def test_layout_custom_with_long_prompts(clips, tmp_path, capsys):
    prompt = "a red circle that moves to the right, then " * 8
    for name in ("dark.mp4", "light.mp4"):
        (tmp_path / name).write_bytes((clips / name).read_bytes())
    record(tmp_path, ["dark.mp4", "light.mp4"], prompt)
    files = [str(tmp_path / "dark.mp4"), str(tmp_path / "light.mp4")]
    folder = tmp_path / "vbench"
    assert main(["eval", *files, "--vbench-layout", str(folder)]) == 0
    prompts = json.loads((folder / "prompts.json").read_text())
    assert list(prompts.values()) == [prompt, prompt]
    assert sorted(p.name for p in (folder / "videos").iterdir()) == sorted(prompts)
    assert (folder / "videos" / next(iter(prompts))).read_bytes() == (
        clips / "dark.mp4"
    ).read_bytes()
    command = capsys.readouterr().out
    assert "vbench evaluate" in command and "--mode=custom_input" in command
    assert str(folder / "prompts.json") in command
    # Once more: refused, nothing touched.
    assert main(["eval", *files, "--vbench-layout", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_layout_standard_under_the_original_prompt(clips, tmp_path, capsys):
    given = tmp_path / "prompts.json"
    given.write_text(json.dumps({"dark.mp4": "a bear", "light.mp4": "a bear"}))
    files = [str(clips / "dark.mp4"), str(clips / "light.mp4")]
    folder = tmp_path / "v b"
    options = ["--vbench-mode", "standard", "--prompts", str(given)]
    assert main(["eval", *files, "--vbench-layout", str(folder), *options]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["videos"]
    names = sorted(p.name for p in (folder / "videos").iterdir())
    assert names == ["a bear-0.mp4", "a bear-1.mp4"]
    command = capsys.readouterr().out
    assert f"'{folder}/videos'" in command and "appearance_style" in command


@pytest.mark.parametrize(
    ("mode", "said"),
    [("standard", "evaluate_long.sh"), ("custom", "eval_long.py --videos_path")],
)
def test_long_videos_are_for_vbench_long(tmp_path, mode, said):
    path = tmp_path / "five.mp4"
    write_video(path, np.stack(grey([9] * 40)), 8)
    plan = vbench.layout({path: "a bear"}, tmp_path / "out", mode)
    assert plan.long and said in plan.command
    assert not (tmp_path / "out").exists()


def test_two_runs_side_by_side_are_not_one_video(clips, tmp_path, capsys):
    shutil.copy(clips / "dark.mp4", tmp_path)
    record(tmp_path, ["dark.mp4"], "a bear", runs=("plain", "TokenTrim"))
    asked = ["eval", str(tmp_path / "dark.mp4"), "--out", str(tmp_path / "out")]
    assert main(asked) == 2
    assert "dark.mp4 shows 2 runs side by side: take each alone." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    record(tmp_path, ["dark.mp4"], "a bear")
    assert main(asked) == 0


def test_layout_refuses(clips, tmp_path, capsys):
    target = ["--vbench-layout", str(tmp_path / "out")]

    def said(*files, options=()):
        assert main(["eval", *map(str, files), *target, *options]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "has no prompt" in said(clips / "dark.mp4")
    (tmp_path / "dark.mp4").write_bytes((clips / "dark.mp4").read_bytes())
    record(tmp_path, ["dark.mp4"], "a bear", runs=("plain", "TokenTrim"))
    assert "2 runs side by side" in said(tmp_path / "dark.mp4")
    given = tmp_path / "given"
    given.write_text('["a bear"]')
    assert "JSON object" in said(clips / "dark.mp4", options=["--prompts", str(given)])
    given.write_text('{"text.mp4": "a bear"}')
    assert "neither a picture" in said(clips / "text.mp4", options=["--prompts", str(given)])
