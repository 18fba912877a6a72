"""The embedded model's world: coloured shapes that move on plain or striped ground.

Everything is closed form: a `Scene` is pure data, and any frame of it is rendered without its
predecessors. Lengths are pixels, coordinates x to the right and y down with pixel centres at
half-integers, times frames (16 a second).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

SIDE = 64
FPS = 16
COLOURS = {
    "red": (225, 35, 35),
    "green": (35, 170, 50),
    "blue": (40, 75, 235),
    "yellow": (245, 215, 30),
    "purple": (190, 30, 205),
    "cyan": (30, 215, 225),
}
# Plain grounds have one tone, striped ones two. Tones are at least 108 (Euclidean) from every shape
# colour and 65 from another ground's, so that no small error turns one into another.
BACKGROUNDS = {
    "white": ((245, 245, 245),),
    "black": ((15, 15, 15),),
    "gray": ((128, 128, 128),),
    "brown": ((105, 65, 35), (150, 105, 70)),
    "navy": ((20, 25, 80), (45, 60, 125)),
    "pink": ((240, 140, 170), (252, 182, 202)),
}
STRIPED = tuple(name for name, tones in BACKGROUNDS.items() if len(tones) == 2)
STRIPE = 8.0  # width of one stripe; stripes are vertical
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 9.0, "medium": 14.0, "large": 21.0}  # radii
SPEEDS = {"slow": 0.5, "fast": 1.0}  # pixels a frame
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# Where an object begins: column and row of a 3 x 3 grid, whose pitch is the size's.
PLACES = {
    "upper left": (-1, -1),
    "top": (0, -1),
    "upper right": (1, -1),
    "left": (-1, 0),
    "centre": (0, 0),
    "right": (1, 0),
    "lower left": (-1, 1),
    "bottom": (0, 1),
    "lower right": (1, 1),
}
PITCH = {"small": 19.0, "medium": 15.0, "large": 9.0}  # pixels
JITTER = 0.5  # pixels by which an object is off its place along an axis, at most
PAN_SPEED = 0.5  # pixels a frame that the ground slides against the camera's motion
STEADY = 16  # frames for which a moving object keeps its first direction, at least
UNNAMED = 1 / 3  # share of captions that leave the places out
PAIRS = 0.35  # share of scenes with two objects


class Regime(NamedTuple):
    """A kind of scenes.

    Attributes:
        share: of all scenes.
        sizes: keys of `SIZES` that its objects have; a second one beside a large one is small.
        speeds: keys of `SPEEDS` that its objects have.
        still: share of its objects that stand still.
    """

    share: float
    sizes: tuple[str, ...]
    speeds: tuple[str, ...]
    still: float


REGIMES = {
    "small_moving": Regime(0.3, ("small",), ("slow", "fast"), 0.0),
    "medium": Regime(0.25, ("medium", "small"), ("slow", "fast"), 0.25),
    "large_slow": Regime(0.25, ("large",), ("slow",), 0.25),
    "panning": Regime(0.2, ("small", "medium", "large"), ("slow",), 0.5),
}


@dataclass(frozen=True)
class Object:
    """One shape.

    Args:
        shape: one of `SHAPES`.
        colour: a key of `COLOURS`.
        size: a key of `SIZES`.
        radius: of its size, as in `SIZES`, in pixels.
        x: of its centre on the screen at frame 0.
        y: likewise.
        direction: a key of `DIRECTIONS`; None if it stands still.
        speed: a key of `SPEEDS`; None if it stands still.
        place: the key of `PLACES` that a caption names; None if it leaves that out.
    """

    shape: str
    colour: str
    size: str
    radius: float
    x: float
    y: float
    direction: str | None = None
    speed: str | None = None
    place: str | None = None

    @property
    def velocity(self) -> tuple[float, float]:
        """First velocity, pixels a frame."""
        return velocity(self.direction, self.speed)


@dataclass(frozen=True)
class Scene:
    """What a video shows.

    Objects are followed by a panning camera: their motion is on the screen, while the ground slides
    past.

    Args:
        objects: one or two, the first in front.
        background: a key of `BACKGROUNDS`.
        pan: the camera's direction, "left" or "right"; None if it is fixed.
        regime: the key of `REGIMES` that it was drawn from, "" for none.
    """

    objects: tuple[Object, ...]
    background: str
    pan: str | None = None
    regime: str = ""


def velocity(direction: str | None, speed: str | None) -> tuple[float, float]:
    """The velocity of a direction and a speed.

    Args:
        direction: a key of `DIRECTIONS`, or None.
        speed: a key of `SPEEDS`, or None.

    Returns:
        (x, y) in pixels a frame; zero for None.
    """
    if direction is None or speed is None:
        return 0.0, 0.0
    dx, dy = DIRECTIONS[direction]
    return dx * SPEEDS[speed], dy * SPEEDS[speed]


def centre(place: str, size: str) -> tuple[float, float]:
    """Where an object stands at a place.

    Args:
        place: a key of `PLACES`.
        size: a key of `SIZES`, since larger objects stand closer to the middle.

    Returns:
        (x, y) of its centre, in pixels.
    """
    column, row = PLACES[place]
    return SIDE / 2 + PITCH[size] * column, SIDE / 2 + PITCH[size] * row


def has_room(place: str, size: str, direction: str | None, speed: str | None) -> bool:
    """Whether an object that begins at a place can move for `STEADY` frames without turning.

    Args:
        place: a key of `PLACES`.
        size: a key of `SIZES`.
        direction: a key of `DIRECTIONS`, or None.
        speed: a key of `SPEEDS`, or None.

    Returns:
        Whether it can, wherever `JITTER` puts it.
    """
    end = np.array(centre(place, size)) + STEADY * np.array(velocity(direction, speed))
    least = SIZES[size] + JITTER
    return bool(np.all((least <= end) & (end <= SIDE - least)))


def positions(thing: Object, frames: int, start: int = 0) -> Float[np.ndarray, "t 2"]:
    """Where an object is: a triangle wave along each axis, between the frame's borders.

    Args:
        thing: the object.
        frames: how many.
        start: the first of them.

    Returns:
        Centres (x, y) in pixels, float64.
    """
    time = np.arange(start, start + frames, dtype=np.float64)[:, None]
    free = np.array([thing.x, thing.y]) + time * np.array(thing.velocity)
    low, span = thing.radius, SIDE - 2 * thing.radius
    return low + span - np.abs((free - low) % (2 * span) - span)


def distance(
    shape: str,
    radius: float | Float[np.ndarray, "*#s"],
    x: Float[np.ndarray, "*#s"],
    y: Float[np.ndarray, "*#s"],
) -> Float[np.ndarray, "*s"]:
    """Signed distance from a shape's outline, negative inside.

    Args:
        shape: one of `SHAPES`.
        radius: of its size, as in `SIZES`, in pixels.
        x: from its centre to the right, in pixels.
        y: from its centre down.

    Returns:
        The distance in pixels.

    Raises:
        ValueError: there is no such shape.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":  # of the circle's area
        return np.maximum(np.abs(x), np.abs(y)) - 0.886 * radius
    if shape == "triangle":  # equilateral, pointing up, its bounding box centred
        height = 0.866 * radius
        return np.maximum(y - height, 0.866 * np.abs(x) - 0.5 * (y + height))
    if shape == "cross":
        along, across = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        return np.maximum(along - radius, across - 0.36 * radius)
    raise ValueError(f"unknown shape {shape!r}: one of {', '.join(SHAPES)}")


def render(scene: Scene, frames: int, start: int = 0) -> UInt8[np.ndarray, "t 64 64 3"]:
    """Draws frames of a scene, anti-aliased.

    Args:
        scene: what to draw.
        frames: how many.
        start: the first of them.

    Returns:
        RGB in [0, 255].
    """
    grid = np.arange(SIDE, dtype=np.float32) + 0.5
    image = np.empty((frames, SIDE, SIDE, 3), np.float32)
    image[:] = _ground(scene, frames, start, grid)
    for thing in reversed(scene.objects):
        at = positions(thing, frames, start).astype(np.float32)
        x = grid - at[:, 0, None, None]
        y = grid[:, None] - at[:, 1, None, None]
        cover = np.clip(0.5 - distance(thing.shape, thing.radius, x, y), 0, 1)[..., None]
        image += cover * (np.array(COLOURS[thing.colour], np.float32) - image)
    return (image + 0.5).astype(np.uint8)


def _ground(scene, frames, start, grid):
    """The background, [t, 1, 64, 3], or [3] where it is plain."""
    tones = np.array(BACKGROUNDS[scene.background], np.float32)
    if len(tones) == 1:
        return tones[0]
    # The ground slides against the camera. float64: exact at any frame index.
    slide = {None: 0.0, "left": -PAN_SPEED, "right": PAN_SPEED}[scene.pan]
    time = np.arange(start, start + frames, dtype=np.float64)[:, None]
    along = (grid + slide * time) % (2 * STRIPE)
    inside = np.abs(along - STRIPE) - STRIPE / 2  # signed distance to the stripe of the second tone
    cover = np.clip(0.5 - inside, 0, 1).astype(np.float32)[:, None, :, None]
    return tones[0] + cover * (tones[1] - tones[0])


def sample_scene(rng: np.random.Generator, regime: str | None = None) -> Scene:
    """Draws a scene at random.

    Args:
        rng: source of all chance.
        regime: a key of `REGIMES`; drawn by their shares if not given.

    Returns:
        The scene.
    """
    if regime is None:
        regime = str(rng.choice(list(REGIMES), p=[kind.share for kind in REGIMES.values()]))
    _, sizes, speeds, still = REGIMES[regime]
    background = pick(rng, STRIPED if regime == "panning" else BACKGROUNDS)
    pan = pick(rng, ("left", "right")) if regime == "panning" else None
    size = "medium" if regime == "medium" else pick(rng, sizes)
    motion = _motion(rng, speeds, still)
    first = (pick(rng, SHAPES), pick(rng, COLOURS), size, *motion)
    kinds = [first]
    if rng.random() < PAIRS:
        # A second one never as large: two large ones would not fit. It moves like the first, or
        # one of them moves and the other stands.
        second = "small" if size == "large" else pick(rng, sizes[:2])
        colour = pick(rng, [name for name in COLOURS if name != first[1]])
        if rng.random() < 0.5 or (motion[0] is None and rng.random() < 0.5):
            other = motion
        else:
            other = (None, None) if motion[0] else _motion(rng, speeds, 0.0)
        kinds.append((pick(rng, SHAPES), colour, second, *other))
    kinds.sort(key=lambda kind: list(SIZES).index(kind[2]))  # the smaller in front
    return Scene(_place(rng, kinds), background, pan, regime)


def pick(rng, names):
    """One of some names, drawn."""
    names = list(names)
    return names[rng.integers(len(names))]


def _motion(rng, speeds, still):
    """A direction and a speed, or none."""
    return (None, None) if rng.random() < still else (pick(rng, DIRECTIONS), pick(rng, speeds))


def unnamed_places(directions: Sequence[str | None]) -> list[str]:
    """Where one or two objects begin if their caption doesn't say it.

    That is the centre, along a motion the side from which it has room. Two objects share the frame
    along the other axis: the first is the left one, beside horizontal motion the upper one.

    Args:
        directions: of the objects, keys of `DIRECTIONS` or None.

    Returns:
        A key of `PLACES` for each.
    """
    steps = [DIRECTIONS.get(direction or "", (0, 0)) for direction in directions]
    grid = [[-dx, -dy] for dx, dy in steps]
    if len(grid) == 2:
        axis = 1 if any(dx for dx, _ in steps) else 0
        grid[0][axis], grid[1][axis] = -1, 1
    return [next(name for name, at in PLACES.items() if at == tuple(cell)) for cell in grid]


def _place(rng, kinds):
    """Objects at their places, apart from one another for most of the first three seconds."""
    named = rng.random() >= UNNAMED
    if named:
        roomy = [[p for p in PLACES if has_room(p, *kind[2:])] for kind in kinds]
    else:
        roomy = [[place] for place in unnamed_places([direction for *_, direction, _ in kinds])]
    best, least = (), math.inf
    for _ in range(40 if named else 1):
        places = [pick(rng, names) if named else names[0] for names in roomy]
        things = []
        for place, (shape, colour, size, direction, speed) in zip(places, kinds, strict=True):
            x, y = (float(v + rng.uniform(-JITTER, JITTER)) for v in centre(place, size))
            said = place if named else None
            things.append(Object(shape, colour, size, SIZES[size], x, y, direction, speed, said))
        if len(things) == 1:
            return tuple(things)
        span = things[0].radius + things[1].radius + 1
        gap = positions(things[0], 3 * FPS) - positions(things[1], 3 * FPS)
        overlap = np.maximum(0, 1 - np.abs(gap).max(axis=1) / span)
        score = overlap.mean() + overlap[0]
        if score < least:
            best, least = tuple(things), score
        if least < 0.05:
            break
    return best
