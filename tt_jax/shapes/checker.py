"""Measures what a video of the shapes world shows, and judges it against what a caption says.

Objects of a scene differ in colour, so an object is found by its colour: every array about objects
has one place for each of the six. Pixels are compared as RGB in [0, 255]; colour errors are
Euclidean distances of RGB in [0, 1].
"""

from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from tt_jax.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FPS,
    PAN_SPEED,
    SHAPES,
    SIDE,
    SIZES,
    SPEEDS,
    STRIPE,
    STRIPED,
    Facts,
    distance,
    parse,
)

_COLOURS = np.array(list(COLOURS.values()), np.float32)
_TONES = np.array([tone for tones in BACKGROUNDS.values() for tone in tones], np.float32)
_GROUND_OF_TONE = np.repeat(np.arange(len(BACKGROUNDS)), [len(t) for t in BACKGROUNDS.values()])
# First and last tone of each ground; the same twice where it is plain.
_ENDS = np.array([(tones[0], tones[-1]) for tones in BACKGROUNDS.values()], np.float32)
# A pixel this near to a shape colour is no blend: mixtures of two other colours of the world, as at
# an edge, keep 86 away from any third.
_PURE = 80.0
_LEAST_CORE = 4  # pixels of pure colour, neighbours included, without which nothing counts as seen
_LEAST_CELLS = 5  # cells of 2x2 pixels: a smaller piece is no object
_MOVING = 0.2  # pixels a frame; the slowest motion of the world has 0.5
_LAG = 4  # frames, over which a motion is measured: few motions turn meanwhile
# Area of a shape is this times radius squared, its centroid this times radius below its centre.
_AREA = {"circle": np.pi, "square": 4 * 0.886**2, "triangle": 3**0.5, "cross": 2.3616}
_DROP = {"circle": 0.0, "square": 0.0, "triangle": 3**0.5 / 6, "cross": 0.0}
_BEHIND = 0.08  # how much smaller a misfit makes an object one that is partly hidden
_FILLS = 6  # rounds of filling in what another object hides


@dataclass(frozen=True)
class Measurement:
    """What each of t frames shows; c runs over `COLOURS`, s over `SHAPES`, in their order.

    Attributes:
        background: index into `BACKGROUNDS`.
        tones: the background's two tones as measured, RGB in [0, 255].
        slide: how far stripes have moved to the right since the first frame, in pixels; NaN on
            plain ground.
        pieces: separate objects of each colour.
        rgb: their mean colour, RGB in [0, 255]; NaN where there are none.
        centre: (x, y) in pixels; NaN where there are none.
        radius: in pixels; NaN where there are none.
        misfit: 1 - overlap with the best fitting shape of each kind; NaN where there are none.
        visible: share that isn't hidden by other objects; 0 where there are none.
    """

    background: Int[np.ndarray, " t"]
    tones: Float[np.ndarray, "t 2 3"]
    slide: Float[np.ndarray, " t"]
    pieces: Int[np.ndarray, "t c"]
    rgb: Float[np.ndarray, "t c 3"]
    centre: Float[np.ndarray, "t c 2"]
    radius: Float[np.ndarray, "t c"]
    misfit: Float[np.ndarray, "t c s"]
    visible: Float[np.ndarray, "t c"]

    def cut(self, frames: slice) -> "Measurement":
        """The measurement of some of the frames.

        Args:
            frames: which; `slide` still counts from the first frame of all.

        Returns:
            Their measurement.
        """
        return Measurement(*(getattr(self, field.name)[frames] for field in fields(self)))

    @property
    def count(self) -> Int[np.ndarray, " t"]:
        """Number of objects in each frame."""
        return self.pieces.sum(axis=1)

    @property
    def shape(self) -> Int[np.ndarray, "t c"]:
        """Index into `SHAPES` of the best fitting shape; -1 where there is no object."""
        absent = np.isnan(self.misfit[..., 0])
        return np.where(absent, -1, np.nan_to_num(self.misfit, nan=np.inf).argmin(axis=-1))


def measure(video: UInt8[np.ndarray, "t 64 64 3"]) -> Measurement:
    """Finds background and objects of every frame, each frame for itself.

    Args:
        video: RGB in [0, 255].

    Returns:
        What each frame shows.
    """
    pixels = video.astype(np.float32)
    frames = len(pixels)
    palette = np.concatenate([_COLOURS, _TONES])
    squares = _square_distance(pixels, palette)
    label = squares.argmin(axis=-1)
    kinds = len(COLOURS)
    votes = [(label == kinds + i).sum(axis=(1, 2)) for i in range(len(_TONES))]
    grounds = np.zeros((frames, len(BACKGROUNDS)), np.int64)
    for ground, vote in zip(_GROUND_OF_TONE, votes, strict=True):
        grounds[:, ground] += vote
    background = grounds.argmax(axis=1)
    to_ground, nearest = _ground_distance(pixels, _ENDS[background])

    pure = np.where(squares.min(axis=-1) < _PURE**2, label, -1)
    core, reach, rgb = {}, {}, np.full((frames, kinds, 3), np.nan, np.float32)
    for kind in range(kinds):
        inner = _erode(pure == kind)
        inner &= (inner.sum(axis=(1, 2)) >= _LEAST_CORE)[:, None, None]
        if not inner.any():
            continue
        core[kind], reach[kind] = inner, _dilate(inner, 3)
        mass = inner.sum(axis=(1, 2))
        seen = mass > 0
        total = np.einsum("tyx,tyxc->tc", inner.astype(np.float32), pixels)
        rgb[seen, kind] = total[seen] / mass[seen, None]

    # Each pixel again, now between the ground and the colours with a core close by: edges, which
    # are blends and may look like a third colour, fall to one of their two sides.
    best = to_ground.copy()
    owner = np.full(label.shape, -1, np.int8)
    for kind, near in reach.items():
        colour = np.nan_to_num(rgb[:, kind])[:, None, None]
        off = pixels - colour
        square = _dot(off, off)
        nearer = near & (square < best)
        best[nearer] = square[nearer]
        owner[nearer] = kind

    pieces = _count_pieces(owner, list(core), kinds)
    rgb[pieces == 0] = np.nan
    centre = np.full((frames, kinds, 2), np.nan)
    radius = np.full((frames, kinds), np.nan)
    misfit = np.full((frames, kinds, len(SHAPES)), np.nan)
    visible = np.zeros((frames, kinds))
    for kind in core:
        at = np.flatnonzero(pieces[:, kind])
        if len(at) == 0:
            continue
        # A pixel's coverage: how far it lies on the way to the colour from the ground, or from
        # another colour of the frame, or nil as a mixture of those two, whichever comes nearest.
        colour = rgb[at, kind][:, None, None]
        cover, residual = _mixture(pixels[at], nearest[at], colour)
        for other in core:
            both = np.flatnonzero(pieces[at, other]) if other != kind else []
            if len(both):
                side = rgb[at[both], other][:, None, None]
                share, off = _mixture(pixels[at[both]], side, colour[both])
                without = _mixture(pixels[at[both]], nearest[at[both]], side)[1]
                share = np.where(off < residual[both], share, cover[both])
                cover[both] = share * (without >= np.minimum(off, residual[both]))
        cover *= reach[kind][at]
        fit = _fit(cover, None)
        # Where it touches another it may be behind that one: believed if it explains more.
        own = owner[at] == kind
        others = _dilate((owner[at] >= 0) & ~own, 1) & ~own
        touched = np.flatnonzero((others & _dilate(own, 1)).any(axis=(1, 2)))
        if len(touched):
            behind = _fit(cover[touched], (~others[touched]).astype(np.float32))
            better = behind[2].min(axis=1) < fit[2][touched].min(axis=1) - _BEHIND
            for whole, part in zip(fit, behind, strict=True):
                whole[touched[better]] = part[better]
        centre[at, kind], radius[at, kind], misfit[at, kind], visible[at, kind] = fit

    tones, slide = _measure_ground(pixels, background, _erode(owner < 0))
    return Measurement(background, tones, slide, pieces, rgb, centre, radius, misfit, visible)


def _dot(a, b):
    """Inner product of the last axis: of three numbers, where einsum is faster than sum."""
    return np.einsum("...c,...c->...", a, b)


def _square_distance(pixels, palette):
    """Squared distances [t, y, x, k] up to nothing: the full square, by one product."""
    own = _dot(pixels, pixels)[..., None]
    return own - 2 * pixels @ palette.T + _dot(palette, palette)


def _ground_distance(pixels, ends):
    """Squared distance to the segment between the two tones [t, 2, 3], and the point there."""
    first, last = ends[:, 0, None, None], ends[:, 1, None, None]
    share, off = _mixture(pixels, first, last)
    return off, first + share[..., None] * (last - first)


def _mixture(pixels, start, end):
    """Share of `end` in the mixture with `start` that comes nearest, and how far off that is."""
    way = end - start
    gone = pixels - start
    share = np.clip(_dot(gone, way) / np.maximum(_dot(way, way), 1), 0, 1)
    left = gone - share[..., None] * way
    return share, _dot(left, left)


def _dilate(mask, steps):
    """Grow a mask [t, y, x] by a square of `steps` pixels each way."""
    for _ in range(steps):
        wide = mask.copy()
        wide[:, 1:] |= mask[:, :-1]
        wide[:, :-1] |= mask[:, 1:]
        mask = wide.copy()
        mask[:, :, 1:] |= wide[:, :, :-1]
        mask[:, :, :-1] |= wide[:, :, 1:]
    return mask


def _erode(mask):
    """Shrink a mask [t, y, x] by one pixel each way, but not from the frame's borders."""
    return ~_dilate(~mask, 1)


def _count_pieces(owner, present, kinds):
    """How many connected things of each colour there are, [t, kinds].

    Things are connected through one another, so that one which passes in front does not cut
    another in two.
    """
    frames = len(owner)
    pieces = np.zeros((frames, kinds), np.int64)
    half = SIDE // 2
    cells = {}
    for kind in present:
        blocks = (owner == kind).reshape(frames, half, 2, half, 2).sum(axis=(2, 4))
        cells[kind] = blocks >= 2
    if not cells:
        return pieces
    union = np.any(list(cells.values()), axis=0)
    # Label by the largest cell number within reach, spread until nothing changes.
    ids = np.where(union, np.arange(1, half * half + 1).reshape(half, half), 0)
    while True:
        spread = ids.copy()
        np.maximum(spread[:, 1:], ids[:, :-1], out=spread[:, 1:])
        np.maximum(spread[:, :-1], ids[:, 1:], out=spread[:, :-1])
        wide = spread.copy()
        np.maximum(wide[:, :, 1:], spread[:, :, :-1], out=wide[:, :, 1:])
        np.maximum(wide[:, :, :-1], spread[:, :, 1:], out=wide[:, :, :-1])
        wide[~union] = 0
        if np.array_equal(wide, ids):
            break
        ids = wide
    ids += (half * half + 1) * np.arange(frames)[:, None, None]
    for kind, mask in cells.items():
        sizes = np.bincount(ids[mask], minlength=(half * half + 1) * frames)
        pieces[:, kind] = (sizes.reshape(frames, -1) >= _LEAST_CELLS).sum(axis=1)
    return pieces


def _fit(cover, known):
    """Fit every shape to coverage [n, y, x]: centre, radius, misfit, share that is not hidden.

    A shape's area and centroid give its radius and centre. Where `known` (1 or 0) is given, the
    rest is hidden: it is filled in from the fit, and the fit repeated.
    """
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    weight = 1 if known is None else known
    fits = []
    for shape in SHAPES:
        template: Any = 0
        for _ in range(1 if known is None else 1 + _FILLS):
            filled = cover * weight + template * (1 - weight)
            area = np.maximum(filled.sum(axis=(1, 2)), 1)
            radius = np.sqrt(area / _AREA[shape])
            x = filled.sum(axis=1) @ grid / area
            y = filled.sum(axis=2) @ grid / area - _DROP[shape] * radius
            right, down = grid - x[:, None, None], grid[:, None] - y[:, None, None]
            size = radius[:, None, None]
            template = np.clip(0.5 - distance(shape, size, right, down), 0, 1)
        off = (np.abs(template - cover) * weight).sum(axis=(1, 2))
        either = (np.maximum(template, cover) * weight).sum(axis=(1, 2))
        share = (template * weight).sum(axis=(1, 2)) / np.maximum(template.sum(axis=(1, 2)), 1)
        # There is at least one round.
        circle = (np.stack([x, y], axis=1), radius)  # pyright: ignore[reportPossiblyUnboundVariable]
        fits.append((*circle, off / np.maximum(either, 1), share))
    middle, radius, misfit, share = (np.stack(values, axis=1) for values in zip(*fits, strict=True))
    best = misfit.argmin(axis=1)
    row = np.arange(len(cover))
    return middle[row, best], radius[row, best], misfit, share[row, best]


def _measure_ground(pixels, background, free):
    """Median colour of each tone's pixels, and the stripes' motion, from the pixels of ground."""
    frames = len(pixels)
    tones = np.full((frames, 2, 3), np.nan, np.float32)
    phase = np.full(frames, np.nan)
    wave = np.exp(-1j * np.pi / STRIPE * (np.arange(SIDE) + 0.5))
    striped = np.isin(background, [list(BACKGROUNDS).index(name) for name in STRIPED])
    for t in range(frames):
        ground = pixels[t][free[t]]
        if len(ground) == 0:
            continue
        tones[t] = np.median(ground, axis=0)
        if not striped[t]:
            continue
        way = _ENDS[background[t], 1] - _ENDS[background[t], 0]
        along = (pixels[t] - _ENDS[background[t]].mean(axis=0)) @ way / (way @ way)
        for tone, side in enumerate((along < 0, along >= 0)):
            if (side & free[t]).sum() >= 16:
                tones[t, tone] = np.median(pixels[t][side & free[t]], axis=0)
        phase[t] = np.angle((along * free[t]).sum(axis=0) @ wave)
    # Stripes that move right delay the wave.
    known = np.flatnonzero(~np.isnan(phase))
    phase[known] = -np.unwrap(phase[known]) * STRIPE / np.pi
    return tones, phase - (phase[known[0]] if len(known) else 0)


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
            else float(np.linalg.norm(_COLOURS[want] - _COLOURS[slot]))
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
            ends = _ENDS[list(BACKGROUNDS).index(said.background)]
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
