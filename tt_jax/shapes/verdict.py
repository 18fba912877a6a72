"""Judges what a measured video shows against what its caption says.

Colour errors are Euclidean distances of RGB in [0, 1].
"""

from itertools import permutations

import numpy as np
from jaxtyping import Float, UInt8

from tt_jax.shapes.checker import ENDS, PALETTE, Measurement, measure
from tt_jax.shapes.language import Facts, parse
from tt_jax.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FPS,
    PAN_SPEED,
    SHAPES,
    SIZES,
    SPEEDS,
)

_MOVING = 0.2  # pixels a frame; the slowest motion of the world has 0.5
_LAG = 4  # frames, over which a motion is measured: few motions turn meanwhile


def judge(
    shown: UInt8[np.ndarray, "t 64 64 3"] | Measurement, said: str | Facts
) -> dict[str, bool]:
    """Whether the first three seconds show what a caption says.

    Args:
        shown: a video or its measurement.
        said: a caption or its facts.

    Returns:
        Of "colour", "background", "shape", "count", "direction" (over the first second), "size",
        "speed" and "camera" those that the caption states; every object must be right for a True.

    Raises:
        ValueError: the caption names no shape.
    """
    seen, said = _read(shown, said, slice(3 * FPS))
    names = list(COLOURS)
    slots = _assign(seen, said)
    result = {"count": _mode(seen.count) == len(said.objects)}
    if said.background:
        result["background"] = list(BACKGROUNDS)[_mode(seen.background)] == said.background
    if said.camera:
        result["camera"] = _camera(seen.slide[: FPS + 1]) == said.camera
    described = [_describe(seen, slot) for slot in slots]
    present = (seen.pieces > 0).mean(axis=0) > 0.5
    for thing, slot, (shape, size, direction, speed) in zip(
        said.objects, slots, described, strict=True
    ):
        there = slot is not None
        checks = {
            "colour": (thing.colour, names[slot] if there and present[slot] else None),
            "shape": (thing.shape, shape),
            "size": (thing.size, size),
            "direction": (thing.direction, direction),
            "speed": (thing.speed, speed),
        }
        for fact, (stated, found) in checks.items():
            if stated is not None:
                result[fact] = result.get(fact, True) and stated == found
    return {fact: bool(right) for fact, right in result.items()}


def _read(shown, said, frames):
    """Measurement of some frames, and facts."""
    seen = measure(shown[frames]) if isinstance(shown, np.ndarray) else shown.cut(frames)
    return seen, parse(said) if isinstance(said, str) else said


def _mode(values):
    return int(np.bincount(values).argmax()) if len(values) else -1


def _assign(seen, said):
    """For every object of the caption, the colour's place that it is judged by, or None.

    Colours stated and seen go first; what is left over is matched by distance in RGB, so that an
    object of a wrong colour is still judged for its shape and motion.
    """
    share = (seen.pieces > 0).mean(axis=0)
    candidates = [int(k) for k in np.argsort(-share, kind="stable") if share[k] > 0.25]
    candidates = candidates[: max(2, len(said.objects))]
    names = list(COLOURS)
    wanted = [names.index(o.colour) if o.colour else None for o in said.objects]
    slots = candidates + [None] * len(wanted)

    def cost(order):
        return sum(
            500.0
            if slot is None
            else 0.0
            if want is None
            else float(np.linalg.norm(PALETTE[want] - PALETTE[slot]))
            for want, slot in zip(wanted, order, strict=True)
        )

    return min(permutations(slots, len(wanted)), key=cost)


def _describe(seen, slot):
    """Shape, size, direction and speed of the object at a colour's place, by their names."""
    if slot is None:
        return None, None, None, None
    clear = seen.visible[:, slot] > 0.7
    if clear.sum() < 4:
        clear = seen.pieces[:, slot] > 0
    shape = SHAPES[_mode(seen.shape[clear, slot])]
    if np.median(seen.misfit[clear, slot].min(axis=-1)) > 0.4:
        shape = None
    size = _size(np.median(seen.radius[clear, slot]))
    move = _step(seen.centre[: FPS + 1, slot])
    pace = np.linalg.norm(move)
    if np.isnan(pace):
        return shape, size, None, None
    if pace < _MOVING:
        return shape, size, "still", None
    ways = np.array([np.array(d) / np.linalg.norm(d) for d in DIRECTIONS.values()])
    direction = list(DIRECTIONS)[int((ways @ move).argmax())]
    speed = min(SPEEDS, key=lambda name: abs(np.log(SPEEDS[name] / pace)))
    return shape, size, direction, speed


def _size(radius):
    return min(SIZES, key=lambda name: abs(np.log(SIZES[name] / radius)))


def _step(centre):
    """Median velocity (x, y) over lags of half the frames given: outliers and gaps don't count."""
    lag = max(1, (len(centre) - 1) // 2)
    moves = (centre[lag:] - centre[:-lag]) / lag
    moves = moves[~np.isnan(moves[:, 0])]
    return np.median(moves, axis=0) if len(moves) else np.array([np.nan, np.nan])


def _camera(slide):
    """The camera's direction from the first second's stripes; plain ground shows none."""
    known = np.flatnonzero(~np.isnan(slide))
    if len(known) < 2:
        return "fixed"
    pace = (slide[known[-1]] - slide[known[0]]) / (known[-1] - known[0])
    if abs(pace) < PAN_SPEED / 2:
        return "fixed"
    return "left" if pace > 0 else "right"


def errors(
    shown: UInt8[np.ndarray, "t 64 64 3"] | Measurement, said: str | Facts
) -> dict[str, Float[np.ndarray, " seconds"]]:
    """How far each whole second is from what a caption says.

    Args:
        shown: a video or its measurement.
        said: a caption or its facts.

    Returns:
        Curves over the seconds, NaN where there is nothing to measure. "colour", "background":
        distance of RGB in [0, 1], mean over objects and frames. "lost": share of objects that are
        missing, "shape": that are seen in another shape. "size": octaves from the stated size.
        "count": objects too many or too few. "motion": difference of speed in pixels a frame;
        bouncing, which turns a motion, costs nothing.

    Raises:
        ValueError: the caption names no shape.
    """
    curves = object_errors(shown, said)
    return {name: np.array([_mean(row) for row in curve]) for name, curve in curves.items()}


def object_errors(
    shown: UInt8[np.ndarray, "t 64 64 3"] | Measurement, said: str | Facts
) -> dict[str, Float[np.ndarray, "seconds _"]]:
    """How far each whole second is from what a caption says, object by object.

    Args:
        shown: a video or its measurement.
        said: a caption or its facts.

    Returns:
        What `errors` describes, a column for each object of the caption, but "background" and
        "count", which have one.

    Raises:
        ValueError: the caption names no shape.
    """
    seen, said = _read(shown, said, slice(None))
    seconds = len(seen.background) // FPS
    curves = {
        name: np.full((seconds, len(said.objects)), np.nan)
        for name in ("colour", "shape", "size", "lost", "motion")
    }
    background, count = np.full(seconds, np.nan), np.full(seconds, np.nan)
    for second in range(seconds):
        now = slice(second * FPS, (second + 1) * FPS)
        part = seen.cut(now)
        count[second] = np.abs(part.count - len(said.objects)).mean()
        if said.background:
            ends = ENDS[list(BACKGROUNDS).index(said.background)]
            background[second] = _mean(np.linalg.norm(part.tones - ends, axis=-1)) / 255
        for i, (thing, slot) in enumerate(zip(said.objects, _assign(part, said), strict=True)):
            there = part.pieces[:, slot] > 0 if slot is not None else np.zeros(FPS, bool)
            curves["lost"][second, i] = 1 - there.mean()
            if slot is None:
                continue
            if thing.colour:
                off = np.linalg.norm(part.rgb[:, slot] - COLOURS[thing.colour], axis=-1)
                curves["colour"][second, i] = _mean(off) / 255
            clear = part.visible[:, slot] > 0.7
            if thing.shape and clear.any():
                wrong = part.shape[clear, slot] != SHAPES.index(thing.shape)
                curves["shape"][second, i] = wrong.mean()
            if thing.size and clear.any():
                octaves = np.log2(part.radius[clear, slot] / SIZES[thing.size])
                curves["size"][second, i] = np.abs(octaves).mean()
            if thing.speed or thing.direction == "still":
                # The median forgives the few motions that turn meanwhile.
                centre = part.centre[:, slot]
                pace = np.linalg.norm(centre[_LAG:] - centre[:-_LAG], axis=-1) / _LAG
                pace = pace[~np.isnan(pace)]
                if len(pace):
                    stated = SPEEDS[thing.speed] if thing.speed else 0.0
                    curves["motion"][second, i] = abs(np.median(pace) - stated)
    return curves | {"background": background[:, None], "count": count[:, None]}


def _mean(values):
    """Mean of what is not NaN; NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return values.mean() if len(values) else np.nan


def moving(seen: Measurement) -> int:
    """How many things move, whatever their colour.

    Args:
        seen: of some frames; what is seen in fewer than half of them doesn't count.

    Returns:
        Their number.
    """
    pace = np.linalg.norm(seen.centre[_LAG:] - seen.centre[:-_LAG], axis=-1) / _LAG
    # Half of the frames at least, or what flashes up once would count.
    known = (~np.isnan(pace)).sum(axis=0) * 2 >= len(pace)
    return int((np.nanmedian(pace[:, known], axis=0) > _MOVING).sum()) if known.any() else 0


def contrast(curve: Float[np.ndarray, " seconds"]) -> float:
    """Start-end contrast of a curve.

    Args:
        curve: one value a second; NaN doesn't count.

    Returns:
        Mean of the last five seconds minus mean of the first five.
    """
    return float(_mean(curve[-5:]) - _mean(curve[:5]))
