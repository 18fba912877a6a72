"""From a run's tables to numbers per prompt, matched across the arms of a study."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from tt_jax.evaluate.chunks import sink_collapse
from tt_jax.evaluate.measures import CONTRASTS, contrasts
from tt_jax.lab import stats
from tt_jax.lab.observe import CHUNK, SECOND, VIDEO
from tt_jax.lab.spec import Arm, Stress, Study
from tt_jax.lab.store import COSTS, TIMING_KEYS

Key = tuple[str, ...]  # stress, host, arm, seconds, seed, prompt, as the tables write them


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What was measured of one video: curves per second and per chunk, and single numbers.

    Attributes:
        curves: by name, one value per second or per chunk.
        numbers: by name, of the whole video.
    """

    curves: Mapping[str, Float[np.ndarray, " t"]]
    numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number of a video.

    Attributes:
        title: what a report calls it.
        of: takes it from what was measured; NaN where there is none.
        digits: behind the point.
    """

    title: str
    of: Callable[[Seen], float]
    digits: int = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A study under one host and stress: each arm's videos, by prompt and seed.

    Attributes:
        study: which of the file's.
        host: the strategy.
        stress: what the system had to bear.
        prompts: those finished in every arm with every seed, as indices into the study's.
        videos: what was seen of each, by arm, then prompt, then seed.
    """

    study: Study
    host: str
    stress: Stress
    prompts: tuple[int, ...]
    videos: Mapping[str, Sequence[Sequence[Seen]]]

    def values(self, arm: str, measure: Measure) -> Float[np.ndarray, " prompts"]:
        """A measure of each prompt, the mean over its seeds.

        Args:
            arm: its name.
            measure: what to take of each video.

        Returns:
            One value a prompt.
        """
        found = [[measure.of(seen) for seen in seeds] for seeds in self.videos[arm]]
        return _mean(np.array(found, float))

    def curve(self, arm: str, name: str) -> Float[np.ndarray, "prompts t"] | None:
        """A curve of each prompt, the mean over its seeds.

        Args:
            arm: its name.
            name: of the curve.

        Returns:
            A row a prompt; None if nothing was measured.
        """
        rows = [[seen.curves[name] for seen in seeds] for seeds in self.videos[arm]]
        curves = _mean(np.moveaxis(np.array(rows, float), 1, -1))
        return None if np.isnan(curves).all() else curves

    def regimes(self) -> dict[str, Int[np.ndarray, " some"]]:
        """The places, among the prompts, of each regime's."""
        names = [self.study.prompts[index].regime for index in self.prompts]
        return {
            kind: np.flatnonzero([name == kind for name in names])
            for kind in dict.fromkeys(names)
            if kind
        }


def _mean(values):
    """Mean over the last axis of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=-1)
    count = known.sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def videos(rows: Sequence[Mapping[str, str]]) -> dict[Key, Seen]:
    """Every video of a table of results."""
    groups: dict[Key, list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    return {key: _seen(group) for key, group in groups.items()}


def _key(row):
    return tuple(row[name] for name in ("stress", "host", "arm", "seconds", "seed", "prompt"))


def _seen(rows):
    """One video's rows as columns."""

    def column(kind: str, name: str) -> Float[np.ndarray, " t"]:
        return np.array([float(row.get(name) or "nan") for row in rows if row["kind"] == kind])

    curves = {name: column("second", name) for name in SECOND}
    curves |= {name: column("chunk", name) for name in CHUNK}
    curves["chunk_at"] = column("chunk", "at")
    numbers = {name: column("video", name) for name in VIDEO}
    return Seen(curves, {name: v[0] if len(v) else np.nan for name, v in numbers.items()})


def comparisons(study: Study, seen: Mapping[Key, Seen]) -> list[Comparison]:
    """A study's comparisons of which at least one prompt is finished.

    Args:
        study: the grid.
        seen: what was measured, by stress, host, arm, seconds, seed and prompt.

    Returns:
        One for each stress and host, in their order.
    """
    found = []
    for stress in study.stress:
        for host in study.hosts:

            def keys(arm: Arm, text: str, host: str = host, stress: Stress = stress) -> list[Key]:
                at = (stress.name, host, arm.name, str(study.seconds))
                return [(*at, str(seed), text) for seed in study.seeds]

            done = [
                index
                for index, prompt in enumerate(study.prompts)
                if all(key in seen for arm in study.arms for key in keys(arm, prompt.text))
            ]
            made = {
                arm.name: [[seen[k] for k in keys(arm, study.prompts[i].text)] for i in done]
                for arm in study.arms
            }
            if done:
                found.append(Comparison(study, host, stress, tuple(done), made))
    return found


def run_times(
    timings: Sequence[Mapping[str, str]], comparison: Comparison, baseline: str
) -> dict[str, float]:
    """Each arm's wall time over the baseline's: the median over the batches that both have.

    Args:
        timings: rows of `timings.csv`.
        comparison: arms under one host and stress.
        baseline: name of the arm that the others are divided by.

    Returns:
        Ratios by the names of arms; NaN where no batch is finished in both.
    """
    wall = {tuple(row[name] for name in TIMING_KEYS): float(row["wall"]) for row in timings}
    study = comparison.study
    ratios: dict[str, float] = {}
    for arm in study.arms:
        found = []
        for (stress, host, name, seconds, *rest), taken in wall.items():
            at = (comparison.stress.name, comparison.host, arm.name, str(study.seconds))
            plain = wall.get((stress, host, baseline, seconds, *rest))
            if (stress, host, name, seconds) == at and plain:
                found.append(taken / plain)
        ratios[arm.name] = statistics.median(found) if found else float("nan")
    return ratios


def costs(
    timings: Sequence[Mapping[str, str]], comparison: Comparison
) -> dict[str, dict[str, float]]:
    """What a chunk of each arm costs by its shapes.

    Args:
        timings: rows of `timings.csv`.
        comparison: arms under one host and stress.

    Returns:
        For each arm the costs that were counted, by the names in `store.COSTS`.
    """
    found: dict[str, dict[str, float]] = {arm.name: {} for arm in comparison.study.arms}
    for row in timings:
        here = row["stress"], row["host"], row["seconds"]
        asked = comparison.stress.name, comparison.host, str(comparison.study.seconds)
        if here == asked and row["arm"] in found:
            counted = {name: float(row[name]) for name in COSTS if row.get(name)}
            found[row["arm"]] |= counted
    return found


# --- measures -----------------------------------------------------------------------------------


def at_end(name: str) -> Callable[[Seen], float]:
    """The mean of a curve's last five seconds."""
    return lambda seen: stats.end(seen.curves[name])


def at_end_less_start(name: str) -> Callable[[Seen], float]:
    """The mean of a curve's last five seconds minus that of its first five."""
    return lambda seen: stats.change(seen.curves[name])


def over_all(name: str) -> Callable[[Seen], float]:
    """The mean of a curve."""
    return lambda seen: float(_mean(seen.curves[name]))


def total(name: str) -> Callable[[Seen], float]:
    """The sum of a curve."""
    return lambda seen: float(np.nansum(seen.curves[name]))


def early_against_late(name: str) -> Callable[[Seen], float]:
    """The mean of a curve's first 15 % against that of its last, absolute."""
    return lambda seen: contrasts(seen.curves[name])[CONTRASTS[2]]


def collapse(over: Callable[[np.ndarray], float]) -> Callable[[Seen], float]:
    """Falls back to the sink, over the chunks that have one."""

    def measure(seen: Seen) -> float:
        falls = sink_collapse(seen.curves["sink_distance"])
        return float(over(falls[~np.isnan(falls)])) if not np.isnan(falls).all() else np.nan

    return measure


def single(name: str) -> Callable[[Seen], float]:
    """A single number of the video."""
    return lambda seen: seen.numbers[name]


def attempts_ratio(seen: Seen) -> float:
    """Severity of what was kept over that of the first attempt, mean over abnormal chunks."""
    acted = seen.curves["triggered"] > 0
    ratio = seen.curves["accepted_severity"][acted] / seen.curves["severity"][acted]
    return float(_mean(ratio))


# Title of each curve, and digits.
CURVES = {
    "lost": ("objects lost, share", 3),
    "colour_error": ("object colour, RGB distance", 3),
    "background_error": ("background colour, RGB distance", 3),
    "shape_error": ("wrong shape, share", 3),
    "size_error": ("size, octaves", 3),
    "count_error": ("count, objects", 2),
    "speed_error": ("speed, pixels a frame", 2),
    "moving": ("still moving, share", 3),
    "place_error": ("planted place, RGB distance", 3),
    "histogram_drift": ("histogram drift", 3),
    "colour_drift": ("colour drift", 3),
    "motion": ("motion, % of the height a second", 2),
    "temporal_flickering": ("temporal flickering, %", 2),
    "sharpness": ("sharpness, variance of the Laplacian", 0),
}
ENDS = tuple(Measure(f"{title}: end", at_end(n), d) for n, (title, d) in CURVES.items())
CHANGES = tuple(
    Measure(f"{title}: end - start", at_end_less_start(n), d) for n, (title, d) in CURVES.items()
)
# As papers on long videos take drift, where that needs no other network.
FIELD = (
    *(
        Measure(f"{CURVES[n][0]}: first against last 15 %", early_against_late(n), CURVES[n][1])
        for n in ("motion", "temporal_flickering", "sharpness", "colour_drift")
    ),
    Measure("sink collapse, levels: maximum", collapse(np.max), 2),
    Measure("sink collapse, levels: mean", collapse(np.mean), 2),
    Measure("jump of motion between chunks, % of the height a second", over_all("jump"), 2),
)
TRIGGERS = Measure("abnormal chunks a video", total("triggered"), 2)
ON_OBJECTS = Measure("dropped tokens on objects, share", over_all("on_object"))
RECORDED = (
    Measure("severity, mean", over_all("severity")),
    Measure("threshold, mean", over_all("threshold")),
    TRIGGERS,
    Measure("severity kept over first", attempts_ratio),
    Measure("kept share of the context, mean", over_all("kept_fraction")),
    ON_OBJECTS,
)
AFTER_PLANT = (
    Measure("plant detected, share", single("detected")),
    Measure("precision of the tokens dropped", single("precision")),
    Measure("recall of the planted tokens", single("recall")),
    Measure("recovery, seconds", single("recovery"), 2),
)
