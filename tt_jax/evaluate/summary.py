"""Measures of video files as a table, a CSV file and a picture; prompts of videos."""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tt_jax.evaluate.measures import CONTRASTS, CURVES, Measures
from tt_jax.files import atomic
from tt_jax.plots import style

# Title and unit.
TITLES = {
    "temporal_flickering": ("temporal flickering", "%"),
    "histogram_drift": ("histogram drift", ""),
    "histogram_drift_end": ("histogram drift, last 3 s", ""),
    "histogram_drift_all": ("histogram drift, all", ""),
    "colour_drift": ("colour drift", ""),
    "motion": ("motion", "% of the height a second"),
    "sharpness": ("sharpness", "variance of the Laplacian"),
}


def labels(files: Sequence[Path]) -> list[str]:
    """Short names for files.

    Args:
        files: all that are shown together.

    Returns:
        The files' names without suffix, or all paths where names repeat.

    Raises:
        ValueError: a path is given twice.
    """
    if len(set(files)) < len(files):
        twice = next(path for path in files if files.count(path) > 1)
        raise ValueError(f"{twice} is given twice.")
    stems = [path.stem for path in files]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in files]


def title(name: str, flow: str) -> str:
    """A value's name for people, with its unit.

    Args:
        name: a key of `Measures.values`, or one of `CURVES`.
        flow: the method behind motion.

    Returns:
        The title; motion's names the method.
    """
    measure, _, contrast = name.partition(", ")
    words, unit = TITLES[measure]
    extra = [unit] if unit else []
    if measure == "motion":
        extra.append(flow)
    return f"{words}, {contrast}" if contrast else ", ".join([words, *extra])


def table(measured: Mapping[str, Measures]) -> str:
    """The table that is printed.

    Args:
        measured: the measures of each video, by its label.

    Returns:
        One line per measure, then one per start-end contrast; one column per video.
    """
    first = next(iter(measured.values()))
    rows = [["", *measured]]
    rows += [["seconds", *(f"{float(m.frames / m.fps):.3f}" for m in measured.values())]]
    rows += [
        [title(name, first.flow), *(f"{m.values[name]:.3f}" for m in measured.values())]
        for name in first.values
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def write_csv(path: Path, measured: Mapping[str, Measures]) -> None:
    """Writes all numbers as CSV, one a row.

    The columns are file, measure, method (of motion), contrast, second (from 0) and value.

    Args:
        path: the file, which is replaced.
        measured: the measures of each video, by its label.
    """
    with atomic(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "measure", "method", "contrast", "second", "value"])
        for label, m in measured.items():
            methods = {"motion": m.flow}
            for name, value in m.values.items():
                measure, _, contrast = name.partition(", ")
                rows.writerow([label, measure, methods.get(measure, ""), contrast, "", value])
            for name, curve in m.curves.items():
                method = methods.get(name, "")
                rows.writerows([label, name, method, "", t, v] for t, v in enumerate(curve))


def picture(measured: Mapping[str, Measures]) -> Figure:
    """Draws each measure over the seconds, with the start-end contrasts of up to two videos.

    Args:
        measured: the measures of each video, by its label.

    Returns:
        A figure, without pyplot; `style.save` writes it.
    """
    figure = Figure(figsize=(9, 1.9 * len(CURVES) + 0.6), dpi=150, layout="constrained")
    colours = matplotlib.color_sequences["petroff10"]
    flow = next(iter(measured.values())).flow
    rows = figure.subplots(len(CURVES), sharex=True)
    labels, families = zip(*map(style.drawable, measured), strict=True)
    for axes, name in zip(rows, CURVES, strict=True):
        for i, (label, m) in enumerate(zip(labels, measured.values(), strict=True)):
            curve = m.curves[name]
            middle = [second + 0.5 for second in range(len(curve))]
            colour = colours[i % len(colours)]
            axes.plot(middle, curve, color=colour, lw=1.6, marker="o", ms=2.5, label=label)
            if len(measured) <= 2:
                change = m.values[f"{name}, {CONTRASTS[0]}"]
                height = 1.02 + 0.1 * (len(measured) - 1 - i)
                axes.text(
                    1.0, height, f"{CONTRASTS[0]}: {change:+.3g}", color=colour, size=7.5,
                    ha="right", va="bottom", transform=axes.transAxes,
                )  # fmt: skip
        axes.set_title(title(name, flow), size=9.5, loc="left", color=style.INK)
        if "drift" in name or name == "motion":
            axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8, color=style.FAINT, labelcolor=style.INK)
        axes.grid(axis="y", color="#E6E6E6", lw=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(style.FAINT)
    rows[-1].set_xlim(left=0)
    rows[-1].set_xlabel("time in the video, seconds", size=9, color=style.INK)
    handles, names = rows[-1].get_legend_handles_labels()
    legend = figure.legend(
        handles, names, loc="outside upper left", ncols=min(3, len(names)), frameon=False,
        prop={"family": [*chain.from_iterable(families)], "size": 9}, labelcolor=style.INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # a file's name may hold any sign
    return figure


def read_prompts(files: Sequence[Path], given: Path | None) -> dict[Path, str]:
    """The prompts of videos: from the file given, else from the record beside the video.

    Args:
        files: the videos.
        given: a JSON file of prompts by path or file name; None for none.

    Returns:
        Each video's prompt.

    Raises:
        FileNotFoundError: there is no file `given`.
        ValueError: a video has no prompt, is given twice or shows two runs side by side, or `given`
            is no such file.
    """
    labels(files)
    prompts: dict[str, str] = {}
    if given is not None:
        prompts = _read_json(given)
        if not isinstance(prompts, dict) or not all(
            isinstance(prompt, str) for prompt in prompts.values()
        ):
            raise ValueError(f"{given} must be a JSON object of prompts by file name.")
    found = {}
    for path in files:
        prompt = prompts.get(str(path), prompts.get(path.name)) or _recorded_prompt(path)
        if prompt is None:
            raise ValueError(f"{path} has no prompt: no record lies beside it; give --prompts.")
        found[path] = prompt
    return found


def refuse_joined(files: Sequence[Path]) -> None:
    """Raises ValueError for a video that, as the record beside it says, shows runs side by side:
    its panes and labels would be measured as one."""
    for path in files:
        _recorded_prompt(path)


def _recorded_prompt(path: Path) -> str | None:
    """The prompt in the record that `tt-jax generate` or `compare` wrote in the video's folder."""
    for beside in sorted(path.parent.glob("*.json")):
        try:
            record = _read_json(beside)
            samples, runs = record["samples"], len(record["trim"])
            joined = path.name in [sample["video"] for sample in samples]
            alone = [name for sample in samples for name in sample.get("alone", {}).values()]
            if not joined and path.name not in alone:
                continue
            prompt = str(record["prompt"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if joined and runs > 1:
            raise ValueError(f"{path} shows {runs} runs side by side: take each alone.")
        return prompt
    return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}.") from None
    except ValueError:
        raise ValueError(f"{path} is no JSON file.") from None
