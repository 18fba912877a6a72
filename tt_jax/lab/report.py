"""`tt-jax lab report`: tables with paired differences, and pictures, of what a run has measured."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tt_jax.files import atomic
from tt_jax.lab import pictures
from tt_jax.lab.compare import (
    AFTER_PLANT,
    CHANGES,
    ENDS,
    FIELD,
    ON_OBJECTS,
    RECORDED,
    TRIGGERS,
    Comparison,
    Measure,
    comparisons,
    costs,
    run_times,
    videos,
)
from tt_jax.lab.spec import Experiment
from tt_jax.lab.stats import Interval, bootstrap, paired
from tt_jax.plots import style

BY_REGIME = ENDS[:2]  # objects lost, object colour
ACTS = (TRIGGERS, ON_OBJECTS)
# Of the table of policies: objects lost, their colour, their shape, motion, all at the end.
POLICY = tuple(
    Measure(title, next(m for m in ENDS if m.title.startswith(start)).of, digits)
    for title, start, digits in (
        ("objects lost", "objects lost", 3),
        ("colour, RGB distance", "object colour", 3),
        ("wrong shape", "wrong shape", 3),
        ("motion, %/s", "motion", 2),
    )
)

HOW_TO_READ = """\
Values are means over prompts, in brackets their 95 % bootstrap intervals (10,000 resamples of the
prompts; of several seeds a prompt's mean is taken first). A difference is taken prompt by prompt,
from the same noise; **bold** where its interval leaves zero out and six prompts or more differ,
since of fewer intervals are too narrow. They aren't corrected for their number: of twenty that
should hold zero, one doesn't. An arm that had no occasion to intervene in a video shows plain's, at
plain's wall time; and cells are made at different times, perhaps beside other work, so that wall
times say little. "end" is the mean of the last five seconds, "start" of the first five (of halves,
under ten seconds). What a video doesn't show, such as the colour of an object that is lost, is left
out of both sides of a difference. Sink collapse: how much nearer a chunk is to the video's first
than the median of the four before it (root mean square, levels of 255). A jump: how much the motion
onto a chunk's first frame differs from that just before and after."""


def write(
    folder: Path,
    experiment: Experiment,
    rows: Sequence[Mapping[str, str]],
    timings: Sequence[Mapping[str, str]],
) -> list[Path]:
    """Writes `report.md` and its pictures into the folder.

    Args:
        folder: of a run.
        experiment: what was run.
        rows: of `results.csv`.
        timings: rows of `timings.csv`.

    Returns:
        Paths of what was written.
    """
    seen = videos(rows)
    parts, pages = ["# Report", HOW_TO_READ], []
    for study in experiment.studies:
        seeds = ", ".join(map(str, study.seeds))
        about = f"{len(study.prompts)} prompts, {study.seconds:g} s, seed {seeds}."
        parts.append(f"## {study.name}\n\n{about}")
        for comparison in comparisons(study, seen):
            name = slug(study.name, comparison.host, comparison.stress.name)
            times = run_times(timings, comparison, experiment.against[0])
            drawn = {
                f"{name}-drift.png": pictures.drift(comparison),
                f"{name}-pareto.png": pictures.pareto(comparison, times, experiment.against[0]),
            }
            for file, figure in drawn.items():
                style.save(figure, folder / file)
                pages.append(folder / file)
            if any(arm.cache for arm in study.arms):
                spent = costs(timings, comparison)
                parts.append(policies(comparison, times, spent, experiment.against[0]))
            parts.append(section(comparison, experiment.against, times))
            parts += [f"![{file}]({file})" for file in drawn]
    path = folder / "report.md"
    with atomic(path) as aside:
        aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [path, *pages]


def slug(*names: str) -> str:
    """A file's name of words."""
    return re.sub(r"[^\w.]+", "-", " ".join(names).lower()).strip("-")


def section(comparison: Comparison, against: Sequence[str], times: Mapping[str, float]) -> str:
    """The tables of a comparison.

    Args:
        comparison: arms under one host and stress.
        against: names of the arms that the others are compared with, the baseline first.
        times: each arm's wall time over the baseline's.

    Returns:
        Markdown.
    """
    arms = list(comparison.videos)
    count, asked = len(comparison.prompts), len(comparison.study.prompts)
    parts = [f"### {comparison.host}, {comparison.stress.name}"]
    if count < asked:
        parts.append(f"Only {count} of {asked} prompts are finished in every arm.")
    measures = [*ENDS, *CHANGES, *FIELD, *RECORDED, *AFTER_PLANT]
    rows = [
        [m.title, *cells]
        for m in measures
        if any(cells := [cell(bootstrap(comparison.values(arm, m)), m) for arm in arms])
    ]
    rows.append([f"wall time over that of {against[0]}", *(f"{times[arm]:.2f}" for arm in arms)])
    parts.append(table(["", *arms], rows))
    if comparison.regimes():
        parts.append(by_regime(comparison, arms))
    for baseline in against:
        others = [arm for arm in arms if arm != baseline]
        if baseline in arms and others:
            parts += [f"Difference from **{baseline}**:", differences(comparison, baseline, others)]
            if comparison.regimes():
                parts.append(differences_by_regime(comparison, baseline, others))
    return "\n\n".join(parts)


def policies(
    comparison: Comparison,
    times: Mapping[str, float],
    spent: Mapping[str, Mapping[str, float]],
    baseline: str,
) -> str:
    """The table of cache policies: what is left at the end, and what a chunk costs.

    Where an arm that intervenes has one beside it that doesn't, under the same cache, its objects
    lost are compared with that one's.

    Args:
        comparison: arms under one host and stress.
        times: each arm's wall time over the baseline's.
        spent: what a chunk of each arm costs (`compare.costs`).
        baseline: name of the arm that times are divided by.

    Returns:
        Markdown.
    """
    plain = {arm.cache: arm.name for arm in comparison.study.arms if not arm.trim.retries}
    lost, rows = POLICY[0], []
    for arm in comparison.study.arms:
        values = [cell(bootstrap(comparison.values(arm.name, m)), m) for m in POLICY]
        other, less = plain.get(arm.cache), ""
        if arm.trim.retries and other is not None:
            pair = (comparison.values(name, lost) for name in (arm.name, other))
            less = cell(paired(*pair), lost, sign=True)
        cost = spent[arm.name]
        bytes_ = f"{cost['cache'] / 1e6:.1f}" if "cache" in cost else ""
        work = f"{cost['operations'] / 1e9:.1f}" if "operations" in cost else ""
        rows.append([arm.name, *values, less, f"{times[arm.name]:.2f}", work, bytes_])
    header = [
        "cache policy", *(m.title for m in POLICY), "objects lost, less the same without TokenTrim",
        f"chunk time over that of {baseline}", "chunk, GFLOP", "cache, MB",
    ]  # fmt: skip
    return table(header, rows)


def differences(comparison: Comparison, baseline: str, others: Sequence[str]) -> str:
    """Paired differences of every measure.

    Args:
        comparison: arms under one host and stress.
        baseline: name of the arm that is subtracted.
        others: names of those it is subtracted from.

    Returns:
        Markdown.
    """
    rows = []
    for m in [*ENDS, *CHANGES, *FIELD, *AFTER_PLANT]:
        plain = comparison.values(baseline, m)
        cells = [cell(paired(comparison.values(arm, m), plain), m, sign=True) for arm in others]
        if any(cells):
            rows.append([m.title, *cells])
    return table(["", *others], rows)


def by_regime(comparison: Comparison, arms: Sequence[str]) -> str:
    """Values within each regime; what the arms do there too.

    Args:
        comparison: arms under one host and stress.
        arms: their names.

    Returns:
        Markdown.
    """
    rows = []
    for regime, places in comparison.regimes().items():
        for m in (*BY_REGIME, *ACTS):
            found = [bootstrap(comparison.values(arm, m)[places]) for arm in arms]
            title = f"{regime} ({len(places)}): {m.title}"
            rows.append([title, *(cell(interval, m) for interval in found)])
    return table(["by regime", *arms], rows)


def differences_by_regime(comparison: Comparison, baseline: str, others: Sequence[str]) -> str:
    """`differences` within each regime, of the same arguments."""
    rows = []
    for regime, places in comparison.regimes().items():
        for m in BY_REGIME:
            plain = comparison.values(baseline, m)[places]
            found = [paired(comparison.values(arm, m)[places], plain) for arm in others]
            cells = [cell(interval, m, sign=True) for interval in found]
            rows.append([f"{regime} ({len(places)}): {m.title}", *cells])
    return table(["by regime", *others], rows)


def cell(interval: Interval, measure: Measure, *, sign: bool = False) -> str:
    """A value with its interval.

    Args:
        interval: what to write.
        measure: of which.
        sign: write a sign, and bold where zero is left out of the interval.

    Returns:
        Markdown; "" if there is no value.
    """
    if not interval.count:
        return ""
    form = f"{'+' if sign else ''}.{measure.digits}f"
    if interval.count == 1:
        return f"{interval.mean:{form}}"
    text = f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
    return f"**{text}**" if sign and interval.sure else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right.

    Args:
        header: titles of the columns.
        rows: their cells.

    Returns:
        Markdown.
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
