"""Means with bootstrap intervals over prompts; numbers that are missing are left out."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

DRAWS = 10_000
LEVEL = 95.0  # per cent
FEWEST = 6  # values but zeros; five of one sign come by chance in more than one case of twenty


@dataclasses.dataclass(frozen=True, eq=False)
class Interval:
    """A mean with its 95 % bootstrap interval.

    Attributes:
        mean: of all values.
        low: where the interval begins; NaN of a single value.
        high: where it ends; NaN of a single value.
        count: number of values.
        nonzero: number of those that aren't zero.
    """

    mean: Float[np.ndarray, "*t"]
    low: Float[np.ndarray, "*t"]
    high: Float[np.ndarray, "*t"]
    count: Float[np.ndarray, "*t"]
    nonzero: Float[np.ndarray, "*t"]

    @property
    def sure(self) -> bool:
        """Whether the interval of a number, not a curve, leaves zero out; not of too few values
        that aren't zero, of which a resample may by chance have none."""
        return bool(self.nonzero >= FEWEST and (self.low > 0 or self.high < 0))


def bootstrap(values: Float[np.ndarray, "n *t"], draws: int = DRAWS) -> Interval:
    """Mean over the first axis, with the percentile interval of resampled rows.

    The rows that are drawn are always the same for the same n, so that what is computed twice is
    the same twice. Of few rows the interval is too narrow.

    Args:
        values: `[n, ...]`, one row for each prompt. A NaN leaves its row out of its column.
        draws: how many resamples.

    Returns:
        An interval for each column; of one without values, NaN.
    """
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0).reshape(len(values), -1)
    times = _resamples(len(values), draws)
    shape = values.shape[1:]
    counts = times @ known.reshape(len(values), -1).astype(float)
    # A draw that has no known value says nothing of the mean.
    means = np.divide(times @ filled, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    count = known.sum(axis=0)
    total = filled.sum(axis=0).reshape(shape)
    mean = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    edge = (100 - LEVEL) / 2
    ends = np.full((2, means.shape[1]), np.nan)
    some = np.atleast_1d(count >= 2).reshape(-1)
    if some.any():
        ends[:, some] = np.nanpercentile(means[:, some], [edge, 100 - edge], axis=0)
    low, high = ends.reshape(2, *shape)
    return Interval(mean[()], low, high, count, (known & (values != 0)).sum(axis=0))


@functools.cache
def _resamples(rows: int, draws: int) -> Float[np.ndarray, "draws n"]:
    """How often each draw takes each row."""
    rng = np.random.default_rng(0)
    return rng.multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(float)


def paired(ours: Float[np.ndarray, "n *t"], theirs: Float[np.ndarray, "n *t"]) -> Interval:
    """Ours minus theirs, prompt by prompt; a prompt that one of them lacks is left out.

    Args:
        ours: a row a prompt, NaN where there is none.
        theirs: likewise, of the same prompts.

    Returns:
        The mean difference and its interval.
    """
    return bootstrap(np.asarray(ours, float) - np.asarray(theirs, float))


def end(curve: Float[np.ndarray, " seconds"]) -> float:
    """Mean of the last five seconds; of the later half of videos under ten."""
    return _mean(curve[-_span(curve) :])


def change(curve: Float[np.ndarray, " seconds"]) -> float:
    """Mean of the last five seconds minus that of the first five, or of halves like `end`."""
    return end(curve) - _mean(curve[: _span(curve)])


def _span(curve):
    return max(1, min(5, len(curve) // 2))


def _mean(values):
    """Mean of what is known; NaN if nothing is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan
