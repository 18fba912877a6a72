"""Measures what a video of the shapes world shows.

Objects of a scene differ in colour, so an object is found by its colour: every array about objects
has one place for each of the six. Pixels are compared as RGB in [0, 255].
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from tt_jax.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    STRIPE,
    STRIPED,
    distance,
)

PALETTE = np.array(list(COLOURS.values()), np.float32)
_TONES = np.array([tone for tones in BACKGROUNDS.values() for tone in tones], np.float32)
_GROUND_OF_TONE = np.repeat(np.arange(len(BACKGROUNDS)), [len(t) for t in BACKGROUNDS.values()])
# First and last tone of each ground; the same twice where it is plain.
ENDS = np.array([(tones[0], tones[-1]) for tones in BACKGROUNDS.values()], np.float32)
# A pixel this near to a shape colour is no blend: mixtures of two other colours of the world, as at
# an edge, keep 86 away from any third.
_PURE = 80.0
_LEAST_CORE = 4  # pixels of pure colour, neighbours included, without which nothing counts as seen
_LEAST_CELLS = 5  # cells of 2x2 pixels: a smaller piece is no object
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
    palette = np.concatenate([PALETTE, _TONES])
    squares = _square_distance(pixels, palette)
    label = squares.argmin(axis=-1)
    kinds = len(COLOURS)
    votes = [(label == kinds + i).sum(axis=(1, 2)) for i in range(len(_TONES))]
    grounds = np.zeros((frames, len(BACKGROUNDS)), np.int64)
    for ground, vote in zip(_GROUND_OF_TONE, votes, strict=True):
        grounds[:, ground] += vote
    background = grounds.argmax(axis=1)
    to_ground, nearest = _ground_distance(pixels, ENDS[background])

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
        way = ENDS[background[t], 1] - ENDS[background[t], 0]
        along = (pixels[t] - ENDS[background[t]].mean(axis=0)) @ way / (way @ way)
        for tone, side in enumerate((along < 0, along >= 0)):
            if (side & free[t]).sum() >= 16:
                tones[t, tone] = np.median(pixels[t][side & free[t]], axis=0)
        phase[t] = np.angle((along * free[t]).sum(axis=0) @ wave)
    # Stripes that move right delay the wave.
    known = np.flatnonzero(~np.isnan(phase))
    phase[known] = -np.unwrap(phase[known]) * STRIPE / np.pi
    return tones, phase - (phase[known[0]] if len(known) else 0)
