"""Pictures of a comparison: drift over time, and what an arm pays for less of it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from tt_jax.lab.compare import CURVES, Comparison, Measure, at_end, over_all
from tt_jax.lab.stats import Interval, bootstrap
from tt_jax.plots import drift as plots
from tt_jax.plots import style

PANELS = (
    "lost", "colour_error", "background_error", "shape_error", "moving", "place_error",
    "histogram_drift", "motion", "sharpness",
)  # fmt: skip
COLUMNS = 3
DRAWS = 1_000  # resamples for a band
AGAIN = (("-", "o"), ("--", "s"), (":", "D"))  # dashes and markers, the first time and later
GREY = 0.1  # a colour whose channels differ less would be taken for the first arm's

DRIFT = Measure("histogram drift: end", at_end("histogram_drift"))
MOTION = Measure("motion, % of the height a second", over_all("motion"))


class Style(NamedTuple):
    """How an arm is drawn.

    Attributes:
        colour: of its line and marker.
        width: of its line, in points.
        dashes: of its line, as Matplotlib's line styles.
        marker: as Matplotlib's.
    """

    colour: ColorType
    width: float
    dashes: str
    marker: str


def styles(arms: list[str]) -> dict[str, Style]:
    """A style for each arm; the first is grey and wide, to show below others, and where there are
    more arms than colours, colours come again with other dashes and markers."""
    colours = [to_rgb(colour) for colour in matplotlib.color_sequences["petroff10"]]
    sequence: list[ColorType] = [c for c in colours if max(c) - min(c) > GREY]
    found = {arms[0]: Style(plots.RUNS[0][0], 3.5, *AGAIN[0])}
    for i, arm in enumerate(arms[1:]):
        again = AGAIN[i // len(sequence) % len(AGAIN)]
        found[arm] = Style(sequence[i % len(sequence)], 1.5, *again)
    return found


def drift(comparison: Comparison) -> Figure:
    """Curves over the seconds: means over prompts, one line for each arm.

    Arms that never differ share a line, and only the first has its 95 % band: of several, none
    could be read. The tables have the intervals.
    """
    arms = list(comparison.videos)
    shown = [name for name in PANELS if comparison.curve(arms[0], name) is not None]
    rows = math.ceil(len(shown) / COLUMNS)
    figure = Figure(figsize=(11, 2.4 * rows + 0.9), dpi=100, layout="constrained")
    grid = list(figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).flat)
    groups = alike({arm: [comparison.curve(arm, name) for name in shown] for arm in arms})
    looks = styles(arms)
    for axes, name in zip(grid, shown, strict=False):
        for group in groups:
            curve, look = comparison.curve(group[0], name), looks[group[0]]
            if curve is None:
                continue
            band = bootstrap(curve, DRAWS)
            middle = np.arange(curve.shape[1]) + 0.5
            axes.plot(
                middle, band.mean, color=look.colour, lw=look.width, ls=look.dashes,
                label=" = ".join(group),
            )  # fmt: skip
            if group is groups[0]:
                axes.fill_between(middle, band.low, band.high, color=look.colour, alpha=0.3, lw=0)
        if comparison.stress.plant is not None:
            axes.axvline(comparison.stress.plant.second, color=plots.ABNORMAL, lw=1, ls=":")
        axes.set_title(CURVES[name][0], size=9.5, loc="left", color=style.INK)
        _plain(axes)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("time in the video, seconds", size=9, color=style.INK)
    handles, names = figure.axes[0].get_legend_handles_labels()
    title = f"{comparison.study.name} · {comparison.host} · {comparison.stress.name}"
    title += f" · band: 95 % of {arms[0]}"
    figure.legend(
        handles, names, loc="outside upper left", ncols=_columns(names, 11), frameon=False,
        fontsize=9, labelcolor=style.INK, title=title, alignment="left",
    )  # fmt: skip
    return figure


def alike(curves: Mapping[str, Sequence[np.ndarray | None]]) -> list[list[str]]:
    """Names of arms whose curves are all the same, together.

    Args:
        curves: of each arm, panel by panel; None where it has none.

    Returns:
        Groups in the order of their first arm.
    """
    groups: list[list[str]] = []
    for arm, found in curves.items():
        for group in groups:
            if all(map(_same, found, curves[group[0]])):
                group.append(arm)
                break
        else:
            groups.append([arm])
    return groups


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other, equal_nan=True)


def pareto(comparison: Comparison, times: Mapping[str, float], baseline: str) -> Figure:
    """Each arm's drift against its motion and its wall time, with 95 % intervals over prompts.

    Args:
        comparison: arms under one host and stress.
        times: each arm's wall time over the baseline's.
        baseline: name of the arm that times are divided by.

    Returns:
        Two panels: drift against motion, and against time.
    """
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for arm, look in styles(list(comparison.videos)).items():
        drifts = bootstrap(comparison.values(arm, DRIFT))
        motion = bootstrap(comparison.values(arm, MOTION))
        taken = np.asarray(times[arm])
        time = Interval(taken, taken, taken, motion.count, motion.count)
        for axes, across in ((left, motion), (right, time)):
            axes.errorbar(
                across.mean, drifts.mean, xerr=_arms(across), yerr=_arms(drifts),
                color=look.colour, marker=look.marker, ms=4 + 2 * look.width, lw=look.width,
                label=arm,
            )  # fmt: skip
    left.set_ylabel(DRIFT.title, size=9, color=style.INK)
    left.set_xlabel(MOTION.title, size=9, color=style.INK)
    right.set_xlabel(f"wall time over that of {baseline!r}", size=9, color=style.INK)
    for axes in (left, right):
        _plain(axes)
    title = f"{comparison.study.name} · {comparison.host} · {comparison.stress.name}"
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper left",
        ncols=_columns(list(comparison.videos), 9), frameon=False,
        fontsize=8, labelcolor=style.INK, title=title, alignment="left",
    )  # fmt: skip
    return figure


def _columns(names: list[str], width: float) -> int:
    """Columns of a legend that is no wider than so many inches."""
    each = 0.6 + 0.075 * max(map(len, names))
    return max(1, min(6, len(names), int(width / each)))


def _arms(interval: Interval) -> np.ndarray:
    """Lengths of an error bar's two arms. Rounding may put an end beyond the mean."""
    return np.maximum([[interval.mean - interval.low], [interval.high - interval.mean]], 0)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8, color=style.FAINT, labelcolor=style.INK)
    axes.grid(color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(style.FAINT)
