"""The embedded model's world: coloured shapes that move on plain or striped ground.

Everything is closed form: a `Scene` is pure data, and any frame of it is rendered without its
predecessors. Lengths are pixels, coordinates x to the right and y down with pixel centres at
half-integers, times frames (16 a second).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class ObjectFacts:
    """What a caption says of one object; None where it says nothing.

    Args:
        shape: one of `SHAPES`.
        colour: a key of `COLOURS`.
        size: a key of `SIZES`.
        direction: a key of `DIRECTIONS`, or "still".
        speed: a key of `SPEEDS`; None for what is at rest too.
        place: a key of `PLACES`.
    """

    shape: str | None
    colour: str | None
    size: str | None
    direction: str | None
    speed: str | None
    place: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a caption says; None where it says nothing.

    Args:
        objects: in the caption's order.
        background: a key of `BACKGROUNDS`.
        camera: "fixed", "left" or "right".
    """

    objects: tuple[ObjectFacts, ...]
    background: str | None
    camera: str | None


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
    background = _pick(rng, STRIPED if regime == "panning" else BACKGROUNDS)
    pan = _pick(rng, ("left", "right")) if regime == "panning" else None
    size = "medium" if regime == "medium" else _pick(rng, sizes)
    motion = _motion(rng, speeds, still)
    first = (_pick(rng, SHAPES), _pick(rng, COLOURS), size, *motion)
    kinds = [first]
    if rng.random() < PAIRS:
        # A second one never as large: two large ones would not fit. It moves like the first, or
        # one of them moves and the other stands.
        second = "small" if size == "large" else _pick(rng, sizes[:2])
        colour = _pick(rng, [name for name in COLOURS if name != first[1]])
        if rng.random() < 0.5 or (motion[0] is None and rng.random() < 0.5):
            other = motion
        else:
            other = (None, None) if motion[0] else _motion(rng, speeds, 0.0)
        kinds.append((_pick(rng, SHAPES), colour, second, *other))
    kinds.sort(key=lambda kind: list(SIZES).index(kind[2]))  # the smaller in front
    return Scene(_place(rng, kinds), background, pan, regime)


def _pick(rng, names):
    names = list(names)
    return names[rng.integers(len(names))]


def _motion(rng, speeds, still):
    """A direction and a speed, or none."""
    return (None, None) if rng.random() < still else (_pick(rng, DIRECTIONS), _pick(rng, speeds))


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
    best, least = (), math.inf
    for _ in range(40 if named else 1):
        if named:
            places = [_pick(rng, [p for p in PLACES if has_room(p, *kind[2:])]) for kind in kinds]
        else:
            places = unnamed_places([direction for *_, direction, _ in kinds])
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


# The grammar: a few phrasings for each fact.
_SIZE_WORDS = {
    "small": ("small", "little"),
    "medium": ("medium", "middle-sized"),
    "large": ("large", "big"),
}
_SPEED_WORDS = {
    "slow": ("slowly", "gently"),
    "fast": ("fast", "quickly"),
}
_VERBS = ("moving", "going", "gliding")
_STILL = ("standing still", "at rest", "not moving")
_PLACE_WORDS = {
    "upper left": ("in the upper left", "at the top left"),
    "top": ("at the top", "near the top"),
    "upper right": ("in the upper right", "at the top right"),
    "left": ("on the left", "at the left"),
    "centre": ("in the centre", "in the center", "in the middle"),
    "right": ("on the right", "at the right"),
    "lower left": ("in the lower left", "at the bottom left"),
    "bottom": ("at the bottom", "near the bottom"),
    "lower right": ("in the lower right", "at the bottom right"),
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Says what a scene shows, in lower case.

    Args:
        scene: what is shown.
        rng: draws the phrasings.

    Returns:
        The caption, which `parse` understands.
    """
    nouns = [_noun(rng, thing) for thing in scene.objects]
    moves = [_pick(rng, _moves(thing.direction, thing.speed)) for thing in scene.objects]
    if len(nouns) == 1:
        subject = f"{nouns[0]} {moves[0]}"
    elif scene.objects[0].velocity == scene.objects[1].velocity:
        subject = f"{nouns[0]} and {nouns[1]} both {moves[0]}"
    else:
        subject = f"{nouns[0]} {moves[0]} and {nouns[1]} {moves[1]}"
    on = _pick(rng, _grounds(scene.background))
    text = _pick(rng, (f"{subject} {on}", f"{on}, {subject}"))
    return text + _pick(rng, _cameras(scene.pan))


def _noun(rng, thing):
    place = f" {_pick(rng, _PLACE_WORDS[thing.place])}" if thing.place else ""
    return f"a {_pick(rng, _SIZE_WORDS[thing.size])} {thing.colour} {thing.shape}{place}"


def _moves(direction, speed):
    """All phrasings of a motion."""
    if direction is None:
        return _STILL
    other = f"{direction}ward" if direction in ("up", "down") else f"to the {direction}"
    pairs = [(where, pace) for where in (direction, other) for pace in _SPEED_WORDS[speed]]
    ways = [" ".join(words) for pair in pairs for words in (pair, pair[::-1])]
    return tuple(f"{verb} {way}" for verb in _VERBS for way in ways)


def _grounds(name):
    """All phrasings of a background."""
    striped = name in STRIPED
    long = f"{name} striped background" if striped else f"{name} background"
    return f"on a {long}", f"over a {long}", f"on {name} stripes" if striped else f"on plain {name}"


def _cameras(pan):
    """All phrasings of the camera's motion; nothing may be said of a fixed one."""
    if pan is None:
        return "", ", fixed camera"
    return f", the camera pans {pan}", f", camera panning {pan}"


def phrases() -> dict[str, Any]:
    """Every phrasing that `caption` draws from, each with the same chance.

    Nested lists of equal lengths: "size" [size, phrasing], "colour", "shape", "place" [place, with
    "" for none before them, phrasing], "move" [direction, rest first, speed, phrasing], "ground"
    [background, phrasing], "camera" [fixed, left, right; phrasing].
    """

    def even(rows):
        count = math.lcm(*map(len, rows))
        return [list(row) * (count // len(row)) for row in rows]

    speeds = list(SPEEDS)
    moves = even([_moves(way, pace) for way in (None, *DIRECTIONS) for pace in speeds])
    return {
        "size": even([_SIZE_WORDS[name] for name in SIZES]),
        "colour": list(COLOURS),
        "shape": list(SHAPES),
        "place": even([("",), *(_PLACE_WORDS[name] for name in PLACES)]),
        "move": [moves[i : i + len(speeds)] for i in range(0, len(moves), len(speeds))],
        "ground": even([_grounds(name) for name in BACKGROUNDS]),
        "camera": even([_cameras(pan) for pan in (None, "left", "right")]),
    }


def words() -> frozenset[str]:
    """Every word that `caption` uses."""

    def texts(table):
        return [table] if isinstance(table, str) else [text for row in table for text in texts(row)]

    return frozenset(
        re.findall(r"[a-z-]+", " ".join(["a and both", *texts([*phrases().values()])]))
    )


DRAWS = (
    f"one or two shapes ({', '.join(SHAPES)}) in {', '.join(COLOURS)}, {', '.join(SIZES)}, at rest "
    f"or moving {', '.join(DIRECTIONS)}, on a background of {', '.join(BACKGROUNDS)}"
)


def facts(scene: Scene) -> Facts:
    """What any caption of a scene says.

    Args:
        scene: what is shown.

    Returns:
        Its facts; a place only where its captions name it.
    """
    return Facts(
        tuple(
            ObjectFacts(o.shape, o.colour, o.size, o.direction or "still", o.speed, o.place)
            for o in scene.objects
        ),
        scene.background,
        scene.pan or "fixed",
    )


_OBJECT = re.compile(
    rf"\b(?:({'|'.join(w for words in _SIZE_WORDS.values() for w in words)}) )?"
    rf"(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})\b"
)
_GROUND = re.compile(rf"\b(?:on|over) (?:a )?(?:plain )?({'|'.join(BACKGROUNDS)})\b")
# Longest first: "at the top left" is not "at the top".
_PLACE_PHRASES = sorted((w for words in _PLACE_WORDS.values() for w in words), key=len)[::-1]
_PLACE = re.compile(rf"\b({'|'.join(_PLACE_PHRASES)})\b")
_CAMERA = re.compile(r"\bcamera (?:pans|panning) (left|right)\b|\bfixed camera\b")


def parse(text: str) -> Facts:
    """The facts that a caption states.

    Args:
        text: a caption of `caption`'s, or one in such words.

    Returns:
        The facts.

    Raises:
        ValueError: it names no shape.
    """
    text = " ".join(text.lower().replace(",", " ").split())
    camera = _CAMERA.search(text)
    text = _CAMERA.sub("", text)
    ground = _GROUND.search(text)
    found = list(_OBJECT.finditer(text))
    if not found:
        raise ValueError(f"no shape in {text!r}: name one of {', '.join(SHAPES)}")
    ends = [match.start() for match in found[1:]] + [len(text)]
    tails = [text[match.end() : end] for match, end in zip(found, ends, strict=True)]
    places = [_PLACE.search(tail) for tail in tails]
    moves = [_PLACE.sub("", tail) for tail in tails]
    if " both " in moves[-1]:
        moves = [moves[-1]] * len(moves)
    return Facts(
        tuple(
            ObjectFacts(
                match[3],
                match[2],
                match[1] and _key(_SIZE_WORDS, match[1]),
                *_read_move(move),
                place and next(p for p, words in _PLACE_WORDS.items() if place[1] in words),
            )
            for match, move, place in zip(found, moves, places, strict=True)
        ),
        ground and ground[1],
        (camera[1] or "fixed") if camera else None,
    )


def _key(table, text):
    """The key one of whose phrases occurs in the text, or None."""
    return next(
        (k for k, words in table.items() if any(re.search(rf"\b{w}\b", text) for w in words)), None
    )


def _read_move(tail):
    """Direction and speed in the words that follow an object."""
    if any(phrase in tail for phrase in _STILL):
        return "still", None
    where = re.search(r"\b(left|right|up|down)(?:ward)?\b", tail)
    return where and where[1], _key(_SPEED_WORDS, tail)


def evaluation_prompts(n: int = 256, seed: int = 2024) -> list[tuple[str, Scene]]:
    """Fixed captions and the scenes they were written for, the regimes in turn.

    Args:
        n: how many.
        seed: of scenes and phrasings.

    Returns:
        Captions and scenes.
    """
    rng = np.random.default_rng(seed)
    names = list(REGIMES)
    scenes = [sample_scene(rng, names[i % len(names)]) for i in range(n)]
    return [(caption(scene, rng), scene) for scene in scenes]
