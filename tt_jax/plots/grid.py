"""One picture of many rollouts: a row for each run, a column for each time."""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tt_jax.overview import COLUMNS, Overview, overview, spaced
from tt_jax.plots.drift import ABNORMAL
from tt_jax.plots.style import FAINT, INK, drawable
from tt_jax.video import Video

# Inches.
WIDTH, LEFT, RIGHT, GAP = 11.0, 2.0, 0.35, 0.07
TOP, BOTTOM, TIMES, WORDS = 0.75, 0.25, 0.25, 0.4
LABEL_LETTERS = 21  # in a line of a label


def picture(
    runs: Mapping[str, Video | Overview], title: str, note: str = "", *, sample: int = 0
) -> Figure:
    """Draws the frames of one sample in many runs at the same times.

    A frame of a chunk in which TokenTrim dropped tokens has a border in its colour; where a further
    prompt begins there is a line with its words.

    Args:
        runs: videos of equal length, by their labels.
        title: the prompt, of any script.
        note: settings, in smaller letters.
        sample: which of the batch.

    Returns:
        A figure, without pyplot; `style.save` writes it.
    """
    seen = {label: overview(video) for label, video in runs.items()}
    first = next(iter(seen.values()))
    height, width = first.size
    places = spaced(first.length)
    side = (WIDTH - LEFT - RIGHT - (COLUMNS - 1) * GAP) / COLUMNS
    tall = side * height / width
    changes = sorted(first.changes.items())
    top = TOP + TIMES + (WORDS if changes else 0)
    row = max(tall, 0.45) + GAP
    whole = top + len(seen) * row + BOTTOM
    figure = Figure(figsize=(WIDTH, whole), dpi=150, facecolor="white")

    def write(x: float, y: float, text: str, **style: Any) -> None:
        text, family = drawable(text)
        style = {"color": INK, "va": "top", "family": family} | style
        figure.text(x / WIDTH, 1 - y / whole, text, parse_math=False, **style)

    write(0.2, 0.18, textwrap.shorten(title, 112, placeholder=" …"), size=12, weight="bold")
    write(0.2, 0.47, note, size=8.5, color="#666666")
    for column, place in enumerate(places):
        x = LEFT + column * (side + GAP) + side / 2
        time = f"{place / first.fps:.1f} s"
        write(x, top - 0.05, time, size=8.5, ha="center", va="bottom")

    for line, (label, video) in enumerate(seen.items()):
        y = top + line * row
        acted = video.numbers["dropped"][sample] > 0
        said = textwrap.fill(re.sub("([:,])", r"\1 ", label), LABEL_LETTERS)
        style = {"size": 9, "weight": "bold", "ha": "right", "ma": "right"}
        times = int(acted.sum())
        write(LEFT - 0.15, y + row / 2 - 0.06, said, va="center", **style)
        if times:
            under = y + row / 2 + 0.09 * (1 + said.count("\n"))
            often = f"{times} intervention{'' if times == 1 else 's'}"
            write(LEFT - 0.15, under, often, size=7.5, color=ABNORMAL, ha="right")
        for column, place in enumerate(places):
            x = LEFT + column * (side + GAP)
            box = (x / WIDTH, 1 - (y + tall) / whole, side / WIDTH, tall / whole)
            axes = figure.add_axes(box, xticks=[], yticks=[])
            axes.imshow(video.stills[sample][place], interpolation="nearest", aspect="auto")
            chunk = np.searchsorted(video.starts, place, side="right") - 1
            colour, thick = (ABNORMAL, 2.0) if acted[chunk] else ("#D0D0D0", 0.6)
            for spine in axes.spines.values():
                spine.set(color=colour, lw=thick)

    starts = [first.starts[place] for place, _ in changes]
    columns = [int(np.searchsorted(places, start)) for start in starts]
    for (_, change), column, end in zip(changes, columns, [*columns, len(places)][1:], strict=True):
        x = LEFT + column * (side + GAP) - GAP / 2
        line = figure.add_axes((x / WIDTH, BOTTOM / whole, 0, 1 - (TOP + BOTTOM) / whole))
        line.axis("off")
        line.set_ylim(0, 1)
        line.plot([0, 0], [0, 1], color=FAINT, lw=1, ls=(0, (4, 2)), clip_on=False)
        words = change.words[sample] if change.words else "another prompt"
        room = max(6, 16 * (end - column))
        fitting = textwrap.fill(words, room, max_lines=2, placeholder="…")
        write(x + 0.04, TOP + 0.02, fitting, size=7.5)
    return figure
