import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from tt_jax import records
from tt_jax._rollout import Rollout
from tt_jax.plots import drift as plots
from tt_jax.plots import grid as plot_grid
from tt_jax.plots import style
from tt_jax.scenes import Change
from tt_jax.video import Video

CHUNKS = 12
HITS = (4, 9)


def make(hits=HITS, chunks=CHUNKS):
    """A video of 12 chunks in which some were made again: severity 3, then 1, over a threshold."""
    rng = np.random.default_rng(0)
    drift = rng.random((1, chunks, 4, 6))
    drift[:, 0] = 0
    severity = np.full((1, chunks), 1.0)
    severity[:, 0] = 0
    threshold = np.where(np.arange(chunks) < 3, 0, 2.0)[None]
    triggered, pruned = np.zeros((1, chunks), bool), np.zeros((1, chunks, 4, 6))
    first = severity.copy()
    for chunk in hits:
        first[0, chunk], triggered[0, chunk], pruned[0, chunk, 1, 2:4] = 3.0, True, 1.0
    starts = (0, *range(9, 9 + 12 * (chunks - 1), 12))
    frames = rng.integers(0, 255, (1, starts[-1] + 12, 16, 24, 3), np.uint8)
    rollout = Rollout(
        latents=None, drift=drift, pruned=pruned, severity=first, accepted_severity=severity,
        threshold=threshold, measured=severity > 0, tested=threshold > 0, triggered=triggered,
        kept_fraction=np.ones((1, chunks)), state=None,
    )  # fmt: skip
    return Video(frames, rollout, starts, None)


def lines(axes):
    return {line.get_label(): line for line in axes.get_legend().get_lines()}


def test_severity_shows_the_records():
    axes = Figure().add_subplot()
    plots.severity(axes, {"TokenTrim": make()})
    kept, rejected = axes.get_lines()[0], axes.get_lines()[-1]
    # Chunk 4 is frames 45 to 56 of 16 a second.
    middle = (45 + 57) / 2 / 16
    assert kept.get_xdata()[4] == middle and kept.get_ydata()[4] == 1.0
    assert np.isnan(kept.get_ydata()[0])
    assert rejected.get_xdata()[0] == middle and list(rejected.get_ydata()) == [3.0, 3.0]
    (steps,) = [patch for patch in axes.patches if hasattr(patch, "get_data")]
    values, edges, _ = steps.get_data()
    assert np.isnan(values[:3]).all() and (values[3:] == 2.0).all()
    assert edges[0] == 0 and edges[-1] == axes.get_xlim()[1] == 141 / 16
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 3
    assert "seconds" in axes.get_xlabel()


def test_an_outlier_makes_the_scale_logarithmic():
    video = make(())
    video.rollout.accepted_severity[0, 1] = 30
    axes = Figure().add_subplot()
    plots.severity(axes, {"TokenTrim": video})
    assert axes.get_yscale() == "log" and axes.get_ylabel() == "severity (logarithmic)"


def test_legend_says_what_is_there():
    def labels(runs, **more):
        axes = Figure().add_subplot()
        plots.severity(axes, runs, **more)
        return [text.get_text() for text in axes.get_legend().get_texts()]

    assert labels({"TokenTrim": make(())}) == ["severity", "threshold", "no test yet"]
    assert labels({"TokenTrim": make()})[-1].startswith("abnormal: made again")
    assert labels({"plain": make()}, acted=False)[-1] == "abnormal"
    assert labels({"plain": make(()), "TokenTrim": make()})[:2] == [
        "plain", "TokenTrim",
    ]  # fmt: skip


def test_dropped_tokens_are_outlined():
    axes = Figure().add_subplot()
    dropped = np.zeros((4, 6), bool)
    dropped[1, 2:4] = dropped[3, 5] = True
    plots.drift_map(axes, np.random.default_rng(0).random((4, 6)), dropped, 1.0)
    (outline,) = axes.collections
    segments = {tuple(map(tuple, segment)) for segment in outline.get_segments()}
    # Six edges around two neighbours, four around one at the border.
    assert len(segments) == 10
    assert ((1.5, 0.5), (2.5, 0.5)) in segments and ((1.5, 0.5), (1.5, 1.5)) in segments
    assert ((2.5, 0.5), (2.5, 1.5)) not in segments
    assert ((5.5, 2.5), (5.5, 3.5)) in segments
    assert axes.get_images()[0].get_clim() == (0, 1)


@pytest.mark.parametrize(
    ("count", "hits", "shown"),
    [
        (4, (), [0, 1, 2, 3]),
        (41, (), [0, 5, 10, 15, 20, 25, 30, 35, 40]),
        (41, (7, 21, 39), [0, 7, 10, 15, 21, 25, 30, 35, 40]),
    ],
)
def test_columns_prefer_interventions(count, hits, shown):
    triggered = np.zeros(count, bool)
    triggered[list(hits)] = True
    assert plots.columns(triggered) == shown


@pytest.mark.parametrize("labels", [("TokenTrim",), ("plain", "TokenTrim")])
def test_picture(labels, tmp_path):
    runs = {label: make(HITS if label == "TokenTrim" else ()) for label in labels}
    prompt = "a prompt for $5 and $6 with жук and " + "words " * 40
    figure = plots.picture(runs, prompt, "a note")
    # One panel; for each run nine frames, nine maps and the colour scale.
    assert len(figure.axes) == 1 + 19 * len(labels)
    scales = {image.get_clim() for axes in figure.axes for image in axes.get_images()[:1]
              if image.get_array().ndim == 2}  # fmt: skip
    assert len({scale for scale in scales if scale[0] == 0}) == 1, "one drift scale for all"
    style.save(figure, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert image.shape[1] == 1650 and (image.reshape(-1, 3) == (213, 94, 0)).all(axis=1).any()


def test_prompts_that_begin_within_the_video(tmp_path):
    """A line at the second of their chunk, with as many of their words as there is room for."""
    words = "a dog that runs along the beach " * 9
    changes = {3: Change(2, None, "none", ("a dog",)), 4: Change(3, None, "flush", (words,))}
    video = dataclasses.replace(make(), changes=changes)
    axes = Figure().add_subplot()
    plots.severity(axes, {"TokenTrim": video})
    drawn = {text.xy[0]: text.get_text() for text in axes.texts}
    assert list(drawn) == [33 / 16, 45 / 16] and drawn[33 / 16] == "a dog"
    shown = drawn[45 / 16]
    assert shown.startswith("a dog that runs") and shown.endswith("…") and shown.count("\n") == 1
    style.save(plots.picture({"TokenTrim": video}, "a cat"), tmp_path / "a.png")


@pytest.mark.parametrize("count", [3, 12])
def test_a_grid_of_runs(count, tmp_path):
    """A row for each run, a column for each time; what TokenTrim did has a border."""
    changes = {3: Change(2, None, "flush", ("a dog",))}
    runs = {f"mem-rope:frames={i},sink=3 plain": make(()) for i in range(count - 1)}
    runs["TokenTrim"] = make()
    runs = {label: dataclasses.replace(video, changes=changes) for label, video in runs.items()}
    figure = plot_grid.picture(runs, "a cat | a dog", "a note")
    images = [axes for axes in figure.axes if axes.get_images()]
    assert len(images) == 9 * count
    marked = [axes.spines["top"].get_linewidth() > 1 for axes in images]
    # Of the last run's frames those of chunks 4 and 9, frames 45 to 56 and 105 to 116.
    assert np.flatnonzero(marked).tolist() == [9 * count - 6, 9 * count - 3]
    said = [text.get_text() for text in figure.texts]
    assert {"0.0 s", "8.8 s", "a dog", "2 interventions", "TokenTrim"} <= set(said)
    assert sum(text.startswith("mem-rope: frames=") for text in said) == count - 1
    style.save(figure, tmp_path / "a.png")
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert (image.reshape(-1, 3) == (213, 94, 0)).all(axis=1).any()


def test_a_single_chunk(tmp_path):
    style.save(plots.picture({"plain": make((), 1)}, "short", acted=False), tmp_path / "a.png")


def test_pyplot_stays_out():
    code = "import sys, tt_jax.plots.drift; print('matplotlib.pyplot' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_continuation_by_less_than_a_chunk(tmp_path):
    """Its one frame was decoded before: none of its chunk's own is shown."""
    video = dataclasses.replace(
        make((), 1), starts=(11,), frames=np.zeros((1, 1, 16, 24, 3), np.uint8)
    )
    assert video.ends == (11,)
    style.save(plots.picture({"TokenTrim": video}, "short"), tmp_path / "a.png")
    assert records.chunks(video, 0)[0]["start"] == records.chunks(video, 0)[0]["end"] == 11 / 16


@pytest.fixture
def glyph_font(tmp_path):
    """A font that is installed for this test and draws 木 and 🐈, which matplotlib's own lacks."""
    letters = {"木": "tree", "🐈": "cat"}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *letters.values()])
    builder.setupCharacterMap({ord(letter): name for letter, name in letters.items()})
    pen = TTGlyphPen(None)
    for i, corner in enumerate([(0, 0), (0, 700), (700, 700), (700, 0)]):
        (pen.lineTo if i else pen.moveTo)(corner)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyf(dict.fromkeys([".notdef", *letters.values()], square))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *letters.values()], (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Two Glyphs", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / "two.ttf")
    known = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "two.ttf")
    yield
    font_manager.fontManager.ttflist[:] = known
    font_manager.fontManager._findfont_cached.cache_clear()


def test_letters_are_drawn_by_a_font_that_has_them(glyph_font, tmp_path):
    assert style.drawable("a 木 and 🐈") == ("a 木 and 🐈", ["sans-serif", "Two Glyphs"])
    assert style.drawable("a tree") == ("a tree", ["sans-serif"])
    # Matplotlib warns of letters that are drawn as boxes, and warnings are errors here.
    style.save(plots.picture({"TokenTrim": make()}, "a 木 and 🐈"), tmp_path / "a.png")


def test_letters_that_no_font_has_are_left_out_aloud(tmp_path, monkeypatch):
    unknown = "\ue123\ue124"  # of the private use area
    with pytest.warns(UserWarning, match=f"no installed font has {unknown}: left out"):
        assert style.drawable(f"a {unknown} b") == ("a b", ["sans-serif"])
    with pytest.warns(UserWarning, match="left out"):
        figure = plots.picture({"TokenTrim": make()}, f"a {unknown} b")
    assert "a b" in [text.get_text() for text in figure.texts]
    style.save(figure, tmp_path / "a.png")
