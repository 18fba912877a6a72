import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tt_jax._rollout import Rollout
from tt_jax.pipeline import Video
from tt_jax.plots import drift as plots
from tt_jax.plots import style

CHUNKS = 12
HITS = (4, 9)


def make(hits=HITS, chunks=CHUNKS):
    """A video of 12 chunks in which some were made again: severity 3, then 1, over a threshold."""
    rng = np.random.default_rng(0)
    drift = rng.random((1, chunks, 4, 6))
    drift[:, 0] = np.nan
    severity = np.full((1, chunks), 1.0)
    severity[:, 0] = np.nan
    threshold = np.where(np.arange(chunks) < 3, np.inf, 2.0)[None]
    triggered, pruned = np.zeros((1, chunks), bool), np.zeros((1, chunks, 4, 6))
    first = severity.copy()
    for chunk in hits:
        first[0, chunk], triggered[0, chunk], pruned[0, chunk, 1, 2:4] = 3.0, True, 1.0
    starts = (0, *range(9, 9 + 12 * (chunks - 1), 12))
    frames = rng.integers(0, 255, (1, starts[-1] + 12, 16, 24, 3), np.uint8)
    rollout = Rollout(
        latents=None, drift=drift, pruned=pruned, severity=first, accepted_severity=severity,
        threshold=threshold, triggered=triggered, kept_fraction=None, state=None,
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
    prompt = "a prompt for $5 and $6 with 日本語 and " + "words " * 40
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


def test_a_single_chunk(tmp_path):
    style.save(plots.picture({"plain": make((), 1)}, "short", acted=False), tmp_path / "a.png")


def test_pyplot_stays_out():
    code = "import sys, tt_jax.plots.drift; print('matplotlib.pyplot' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
