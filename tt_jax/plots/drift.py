"""One picture of a rollout, or of two side by side: severity, token drift, frames over time."""

import textwrap
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tt_jax.overview import COLUMNS, Overview, columns, overview
from tt_jax.plots.style import FAINT, INK, drawable
from tt_jax.video import Video

# Okabe and Ito's palette, which the colour-blind can tell apart.
RUNS = (("#B5B0AA", 2.6), ("#0072B2", 1.6))  # colour and width of lines; the second lies on top
THRESHOLD, ABNORMAL = "#E69F00", "#D55E00"
SHADE = "#F2F2F2"
DRIFT = "Blues"

# Inches.
WIDTH, LEFT, RIGHT, GAP = 11.0, 0.75, 0.6, 0.08
PANEL, TOP, BELOW_PANEL, BELOW_RUN = 2.3, 1.0, 0.7, 0.44
PROMPT_LETTERS = 150  # of a prompt's words, across the whole panel


def picture(
    runs: Mapping[str, Video | Overview],
    title: str,
    note: str = "",
    *,
    acted: bool = True,
    sample: int = 0,
) -> Figure:
    """Draws the rollouts of one sample.

    Above: severity over time, with the threshold and the abnormal chunks of the last run, and a
    line with the words of each prompt that begins in it. Below,
    for each run: frames, and the drift maps of their chunks with the dropped tokens outlined; one
    scale for all.

    Args:
        runs: one or two videos of equal length, by their labels; of two overviews the first one is
            made like the second (`overview.Observer`).
        title: the prompt, of any script.
        note: settings, in smaller letters.
        acted: whether the last run's abnormal chunks were made again.
        sample: which of the batch.

    Returns:
        A figure, without pyplot; `style.save` writes it.
    """
    last = overview(list(runs.values())[-1])
    seen = {label: overview(video, like=last) for label, video in runs.items()}
    chunks = columns(last.numbers["triggered"][sample])
    side = (WIDTH - LEFT - RIGHT - (COLUMNS - 1) * GAP) / COLUMNS
    tall, drift_tall = (side * h / w for h, w in (last.size, last.maps[sample][chunks[0]][0].shape))
    row = tall + GAP + drift_tall + BELOW_RUN
    height = TOP + PANEL + BELOW_PANEL + len(seen) * row
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        """Axes whose upper left corner is at (x, y), in inches from the picture's."""
        return figure.add_axes((x / WIDTH, 1 - (y + h) / height, w / WIDTH, h / height))

    def write(x: float, y: float, text: str, **style: Any) -> None:
        text, family = drawable(text)
        style = {"color": INK, "va": "top", "family": family} | style
        figure.text(x / WIDTH, 1 - y / height, text, parse_math=False, **style)

    def write_side(y: float, text: str, **style: Any) -> None:
        # A long one, as a preset's name is, in lines no longer than a frame is tall.
        size, lines = (9, [text]) if len(text) <= 15 else (7, textwrap.wrap(text, 16))
        write(
            LEFT - 0.12, y, "\n".join(lines), rotation=90, size=size, ha="right", va="center",
            ma="center", **style,
        )  # fmt: skip

    write(LEFT, 0.18, textwrap.shorten(title, 105, placeholder=" …"), size=12, weight="bold")
    write(LEFT, 0.47, note, size=8.5, color="#666666")
    severity(axes(LEFT, TOP, WIDTH - LEFT - RIGHT, PANEL), seen, acted=acted, sample=sample)

    ceiling = max(
        _highest(drift) for video in seen.values() for drift, _ in video.maps[sample].values()
    )
    y = TOP + PANEL + BELOW_PANEL
    for label, video in seen.items():
        below = y + tall + GAP
        write_side(y + tall / 2, label if len(seen) > 1 else "frames", weight="bold")
        write_side(below + drift_tall / 2, "token drift")
        images = []
        for column, chunk in enumerate(chunks):
            x = LEFT + column * (side + GAP)
            frame = video.middle(chunk)
            drift, pruned = video.maps[sample][chunk]
            dropped = pruned > 0
            where = axes(x, y, side, tall)
            where.imshow(video.stills[sample][frame], interpolation="nearest", aspect="auto")
            _bare(where)
            where = axes(x, below, side, drift_tall)
            images.append(drift_map(where, drift, dropped, ceiling))
            marked: dict[str, Any] = (
                {"color": ABNORMAL, "weight": "bold"} if dropped.any() else {"color": INK}
            )
            where.set_xlabel(f"{frame / video.fps:.1f} s", size=8.5, labelpad=3, **marked)
        x = LEFT + len(chunks) * (side + GAP) + 0.07
        bar = figure.colorbar(images[-1], cax=axes(x, below, 0.12, drift_tall))
        bar.outline.set_visible(False)
        bar.locator = MaxNLocator(3)
        bar.ax.tick_params(labelsize=7.5, length=2, color=FAINT, labelcolor=INK)
        y += row
    return figure


class _Course(NamedTuple):
    """A run's chunks: where they begin and end, their middles, and what TokenTrim saw in them."""

    edges: Float[np.ndarray, " chunks+1"]
    middle: Float[np.ndarray, " chunks"]
    first: Float[np.ndarray, " chunks"]
    kept: Float[np.ndarray, " chunks"]
    threshold: Float[np.ndarray, " chunks"]
    triggered: Bool[np.ndarray, " chunks"]


def _course(video: Overview, sample: int) -> _Course:
    edges = np.array([*video.starts, video.ends[-1]]) / video.fps
    names = ("severity", "accepted_severity", "threshold", "triggered")
    numbers = (video.numbers[name][sample] for name in names)
    return _Course(edges, (edges[:-1] + edges[1:]) / 2, *numbers)


def _highest(drift: Float[np.ndarray, "h w"]) -> float:
    return float(max(drift[np.isfinite(drift)], default=1.0))


def severity(
    axes: Axes, runs: Mapping[str, Video | Overview], *, acted: bool = True, sample: int = 0
) -> None:
    """Draws severity per chunk of each run; threshold, abnormal chunks, prompts of the last one.

    The scale is logarithmic, and says so, where a linear one would press most chunks to its floor.

    Args:
        axes: to draw on.
        runs: videos by their labels.
        acted: whether the last run's abnormal chunks were made again.
        sample: which of the batch.
    """
    handles, values = [], []
    names, families = zip(*map(drawable, runs), strict=True)
    seen = {label: overview(video) for label, video in runs.items()}
    courses = [_course(video, sample) for video in seen.values()]
    for label, course, (colour, width) in zip(names, courses, RUNS[-len(runs) :], strict=True):
        kept = course.kept
        style = {"color": colour, "lw": width, "marker": "o", "ms": 2 * width}
        axes.plot(course.middle, kept, zorder=3, **style)
        values.append(kept[np.isfinite(kept)])
        handles.append(Line2D([], [], label="severity" if len(runs) == 1 else label, **style))

    edges, middle, first, kept, threshold, triggered = courses[-1]
    tested = np.isfinite(threshold)
    axes.stairs(
        np.where(tested, threshold, np.nan), edges, baseline=None, color=THRESHOLD, lw=1.6, zorder=2
    )
    handles.append(Line2D([], [], color=THRESHOLD, lw=1.6, label="threshold"))
    axes.axvspan(edges[0], edges[np.argmax(tested) if tested.any() else -1], color=SHADE, lw=0)
    handles.append(Patch(color=SHADE, label="no test yet"))
    if triggered.any():
        style = {"marker": "D", "ms": 5.5, "ls": "", "color": ABNORMAL, "mec": "white"}
        for chunk in np.flatnonzero(triggered):
            axes.axvspan(edges[chunk], edges[chunk + 1], color=ABNORMAL, alpha=0.13, lw=0)
        axes.vlines(middle[triggered], first[triggered], kept[triggered], color=ABNORMAL, lw=1)
        axes.plot(middle[triggered], first[triggered], zorder=4, **style)
        name = "abnormal" + (": made again without the outlined tokens" if acted else "")
        handles.append(Line2D([], [], label=name, **style))

    axes.margins(y=0.12)
    values = np.concatenate(values)
    logarithmic = values.size and values.min() > 0 and values.max() > 10 * np.median(values)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlim(0, edges[-1])
    prompts(axes, list(seen.values())[-1], sample)
    axes.set_xlabel("time in the video, seconds", size=9, color=INK)
    name = "severity (logarithmic)" if logarithmic else "severity"
    axes.set_ylabel(name, size=9, color=INK)
    axes.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
    axes.grid(axis="y", color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.008, 1.0), ncols=len(handles),
        prop={"family": [*chain.from_iterable(families)], "size": 8.5}, labelcolor=INK,
        frameon=False, handlelength=1.6, columnspacing=1.6,
    )  # fmt: skip


def prompts(axes: Axes, video: Video | Overview, sample: int = 0) -> None:
    """Draws a line where each further prompt begins, its words beside it as far as they fit.

    Args:
        axes: whose x is seconds, set to the video's length already.
        video: whose prompts.
        sample: which of the batch.
    """
    places = sorted(video.changes)
    starts = [video.starts[place] / video.fps for place in places]
    length = axes.get_xlim()[1]
    for place, start, end in zip(places, starts, [*starts, length][1:], strict=True):
        axes.axvline(start, color=INK, lw=1, ls=(0, (4, 2)), zorder=1)
        change = video.changes[place]
        words = change.words[sample] if change.words else "another prompt"
        if change.how not in (None, "none"):
            words = f"{words} ({change.how})"
        room = max(5, round((end - start) / length * PROMPT_LETTERS))
        shown, family = drawable(textwrap.fill(words, room, max_lines=2, placeholder="…"))
        axes.annotate(
            shown, (start, 1), (3, -2), xycoords=axes.get_xaxis_transform(), va="top", size=7.5,
            textcoords="offset points", color=INK, family=family, parse_math=False, zorder=5,
        )  # fmt: skip


def drift_map(
    axes: Axes, drift: Float[np.ndarray, "h w"], dropped: Bool[np.ndarray, "h w"], ceiling: float
) -> AxesImage:
    """Draws one chunk's token drift with the dropped tokens outlined.

    Args:
        axes: to draw on.
        drift: of each token; NaN where there is nothing to compare with.
        dropped: the tokens that an intervention dropped.
        ceiling: the drift of the darkest colour; the lightest is 0.

    Returns:
        The image, for a colour bar.
    """
    image = axes.imshow(drift, cmap=DRIFT, vmin=0, vmax=ceiling, interpolation="nearest")
    if not np.isfinite(drift).any():
        axes.set_facecolor(SHADE)
        where = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, "nothing to\ncompare with", size=7, color="#777777", **where)
    # Between a dropped token and another one, above or to the left of it, runs a line.
    padded = np.pad(dropped, 1)
    above, beside = (np.argwhere(np.diff(padded, axis=axis)) for axis in (0, 1))
    lines = [[(x - 1.5, y - 0.5), (x - 0.5, y - 0.5)] for y, x in above]
    lines += [[(x - 0.5, y - 1.5), (x - 0.5, y - 0.5)] for y, x in beside]
    axes.add_collection(LineCollection(lines, colors=ABNORMAL, lw=1.3, capstyle="round"))
    _bare(axes)
    return image


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#D0D0D0", lw=0.6)
