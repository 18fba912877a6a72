"""The embedded model's world: coloured shapes that move on plain or striped ground.

Everything is closed form: a `Scene` is pure data, and any frame of it is rendered without its
predecessors. Lengths are pixels, coordinates x to the right and y down with pixel centres at
half-integers, times frames (16 a second).
"""

import math
import re
from dataclasses import dataclass

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
SIZES = {"small": (6.0, 7.5), "medium": (11.0, 13.0), "large": (22.0, 24.0)}  # range of radii
SPEEDS = {"slow": 0.375, "medium": 0.75, "fast": 1.5}  # pixels a frame
DIRECTIONS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-1, -1),
    "up right": (1, -1),
    "down left": (-1, 1),
    "down right": (1, 1),
}
PAN_SPEED = 0.5  # pixels a frame that the ground slides against the camera's motion
STEADY = 24  # frames for which a moving object keeps its first direction, at least
# How often each regime is drawn when none is asked for.
REGIMES = {"small_moving": 0.3, "medium": 0.25, "large_slow": 0.25, "panning": 0.2}


@dataclass(frozen=True)
class Object:
    """One shape; `radius` is half of its extent, `x, y` its centre at frame 0, on the screen.

    `direction` and `speed` are keys of `DIRECTIONS` and `SPEEDS`, both None if it stands still.
    """

    shape: str
    colour: str
    size: str
    radius: float
    x: float
    y: float
    direction: str | None = None
    speed: str | None = None

    @property
    def velocity(self) -> tuple[float, float]:
        """First velocity, pixels a frame."""
        return velocity(self.direction, self.speed)


@dataclass(frozen=True)
class Scene:
    """One or two objects, the first in front; `pan` is the camera's direction, or None.

    Objects are followed by a panning camera: their motion is on the screen, while the ground
    slides past. `phase` in [0, 1) places the stripes.
    """

    objects: tuple[Object, ...]
    background: str
    pan: str | None = None
    phase: float = 0.0
    regime: str = ""


@dataclass(frozen=True)
class ObjectFacts:
    """What a caption says of one object, None where nothing; `direction` is "still" at rest."""

    shape: str | None
    colour: str | None
    size: str | None
    direction: str | None
    speed: str | None


@dataclass(frozen=True)
class Facts:
    """What a caption says; None where it says nothing. `camera` is "fixed", "left" or "right"."""

    objects: tuple[ObjectFacts, ...]
    background: str | None
    camera: str | None


def velocity(direction: str | None, speed: str | None) -> tuple[float, float]:
    """(x, y) pixels a frame of a direction and a speed; zero for None."""
    if direction is None or speed is None:
        return 0.0, 0.0
    dx, dy = DIRECTIONS[direction]
    scale = SPEEDS[speed] / math.hypot(dx, dy)
    return dx * scale, dy * scale


def reach(
    radius: float, direction: str | None, speed: str | None
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Least and greatest (x, y) of a first centre whose motion doesn't turn for `STEADY` frames."""
    run = STEADY * np.array(velocity(direction, speed))
    return radius - np.minimum(run, 0), SIDE - radius - np.maximum(run, 0)


def positions(thing: Object, frames: int, start: int = 0) -> Float[np.ndarray, "t 2"]:
    """Centres (x, y) in frames `start` to `start + frames - 1`: a triangle wave along each axis."""
    time = np.arange(start, start + frames, dtype=np.float64)[:, None]
    free = np.array([thing.x, thing.y]) + time * np.array(thing.velocity)
    low, span = thing.radius, SIDE - 2 * thing.radius
    return low + span - np.abs((free - low) % (2 * span) - span)


def distance(
    shape: str,
    radius: float | Float[np.ndarray, "..."],
    x: Float[np.ndarray, "..."],
    y: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """Signed distance in pixels from the outline (negative inside), x and y from the centre."""
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
    """Frames `start` to `start + frames - 1` of a scene, anti-aliased, RGB in [0, 255]."""
    centre = np.arange(SIDE, dtype=np.float32) + 0.5
    image = np.empty((frames, SIDE, SIDE, 3), np.float32)
    image[:] = _ground(scene, frames, start, centre)
    for thing in reversed(scene.objects):
        at = positions(thing, frames, start).astype(np.float32)
        x = centre - at[:, 0, None, None]
        y = centre[:, None] - at[:, 1, None, None]
        cover = np.clip(0.5 - distance(thing.shape, thing.radius, x, y), 0, 1)[..., None]
        image += cover * (np.array(COLOURS[thing.colour], np.float32) - image)
    return (image + 0.5).astype(np.uint8)


def _ground(scene, frames, start, centre):
    """The background, [t, 1, 64, 3], or [3] where it is plain."""
    tones = np.array(BACKGROUNDS[scene.background], np.float32)
    if len(tones) == 1:
        return tones[0]
    # The ground slides against the camera. float64: exact at any frame index.
    slide = {None: 0.0, "left": -PAN_SPEED, "right": PAN_SPEED}[scene.pan]
    time = np.arange(start, start + frames, dtype=np.float64)[:, None]
    along = (centre + slide * time + 2 * STRIPE * scene.phase) % (2 * STRIPE)
    inside = np.abs(along - STRIPE) - STRIPE / 2  # signed distance to the stripe of the second tone
    cover = np.clip(0.5 - inside, 0, 1).astype(np.float32)[:, None, :, None]
    return tones[0] + cover * (tones[1] - tones[0])


def sample_scene(rng: np.random.Generator, regime: str | None = None) -> Scene:
    """Draw a scene; `regime` is a key of `REGIMES`, by default drawn too."""
    if regime is None:
        regime = str(rng.choice(list(REGIMES), p=list(REGIMES.values())))
    sizes, speeds, still = {
        "small_moving": (("small",), ("slow", "medium", "fast"), 0.0),
        "medium": (("medium", "small"), ("slow", "medium", "fast"), 0.25),
        "large_slow": (("large",), ("slow",), 0.25),
        "panning": (("small", "medium", "large"), ("slow", "medium"), 0.5),
    }[regime]
    background = _pick(rng, STRIPED if regime == "panning" else BACKGROUNDS)
    pan = _pick(rng, ("left", "right")) if regime == "panning" else None
    size = "medium" if regime == "medium" else _pick(rng, sizes)
    motion = _motion(rng, size, speeds, still)
    first = (_pick(rng, SHAPES), _pick(rng, COLOURS), size, *motion)
    kinds = [first]
    if rng.random() < 0.35:
        # A second one never as large: two large ones would not fit. It moves like the first, or
        # one of them moves and the other stands.
        second = "small" if size == "large" else _pick(rng, sizes[:2])
        colour = _pick(rng, [name for name in COLOURS if name != first[1]])
        if rng.random() < 0.5 or (motion[0] is None and rng.random() < 0.5):
            other = motion
        else:
            other = (None, None) if motion[0] else _motion(rng, second, speeds, 0.0)
        kinds.append((_pick(rng, SHAPES), colour, second, *other))
    kinds.sort(key=lambda kind: list(SIZES).index(kind[2]))  # the smaller in front
    return Scene(_place(rng, kinds), background, pan, float(rng.random()), regime)


def _pick(rng, names):
    names = list(names)
    return names[rng.integers(len(names))]


def _motion(rng, size, speeds, still):
    """A direction and a speed that an object of this size can keep for `STEADY` frames."""
    if rng.random() < still:
        return None, None
    room = SIDE - 2 * SIZES[size][1]
    return _pick(rng, DIRECTIONS), _pick(rng, [s for s in speeds if SPEEDS[s] * STEADY <= room])


def _place(rng, kinds):
    """Radii and first positions, apart from one another for most of the first three seconds."""
    best, least = (), math.inf
    for _ in range(40):
        things = []
        for shape, colour, size, direction, speed in kinds:
            radius = float(rng.uniform(*SIZES[size]))
            x, y = (float(v) for v in rng.uniform(*reach(radius, direction, speed)))
            things.append(Object(shape, colour, size, radius, x, y, direction, speed))
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
    "medium": ("steadily", "evenly"),
    "fast": ("fast", "quickly"),
}
_VERBS = ("moving", "going", "gliding")
_STILL = ("standing still", "at rest", "not moving")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Say what a scene shows, in lower case, with phrasings drawn by `rng`."""
    nouns = [f"a {_pick(rng, _SIZE_WORDS[o.size])} {o.colour} {o.shape}" for o in scene.objects]
    moves = [_move(rng, o) for o in scene.objects]
    if len(nouns) == 1:
        subject = f"{nouns[0]} {moves[0]}"
    elif scene.objects[0].velocity == scene.objects[1].velocity:
        subject = f"{nouns[0]} and {nouns[1]} both {moves[0]}"
    else:
        subject = f"{nouns[0]} {moves[0]} and {nouns[1]} {moves[1]}"
    ground = scene.background
    long, short = (
        (f"{ground} striped background", f"{ground} stripes")
        if ground in STRIPED
        else (f"{ground} background", f"plain {ground}")
    )
    on = _pick(rng, (f"on a {long}", f"over a {long}", f"on {short}"))
    text = _pick(rng, (f"{subject} {on}", f"{on}, {subject}"))
    if scene.pan:
        camera = (f", the camera pans {scene.pan}", f", camera panning {scene.pan}")
    else:
        camera = ("", ", fixed camera")
    return text + _pick(rng, camera)


def _move(rng, thing):
    if thing.direction is None:
        return _pick(rng, _STILL)
    if " " in thing.direction:
        other = thing.direction.replace(" ", " and ")
    else:
        other = (
            f"{thing.direction}ward"
            if thing.direction in ("up", "down")
            else (f"to the {thing.direction}")
        )
    where = _pick(rng, (thing.direction, other))
    pace = _pick(rng, _SPEED_WORDS[thing.speed])
    return f"{_pick(rng, _VERBS)} " + _pick(rng, (f"{where} {pace}", f"{pace} {where}"))


def facts(scene: Scene) -> Facts:
    """What any caption of the scene says."""
    return Facts(
        tuple(
            ObjectFacts(o.shape, o.colour, o.size, o.direction or "still", o.speed)
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
_CAMERA = re.compile(r"\bcamera (?:pans|panning) (left|right)\b|\bfixed camera\b")


def parse(text: str) -> Facts:
    """The facts that a caption states; ValueError if it names no shape."""
    text = " ".join(text.lower().replace(",", " ").split())
    camera = _CAMERA.search(text)
    text = _CAMERA.sub("", text)
    ground = _GROUND.search(text)
    found = list(_OBJECT.finditer(text))
    if not found:
        raise ValueError(f"no shape in {text!r}: name one of {', '.join(SHAPES)}")
    ends = [match.start() for match in found[1:]] + [len(text)]
    tails = [text[match.end() : end] for match, end in zip(found, ends, strict=True)]
    if " both " in tails[-1]:
        tails = [tails[-1]] * len(tails)
    return Facts(
        tuple(
            ObjectFacts(
                match[3], match[2], match[1] and _key(_SIZE_WORDS, match[1]), *_read_move(tail)
            )
            for match, tail in zip(found, tails, strict=True)
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
    vertical = re.search(r"\b(up|down)(?:ward)?\b", tail)
    sideways = re.search(r"\b(left|right)\b", tail)
    where = " ".join(match[1] for match in (vertical, sideways) if match)
    return where or None, _key(_SPEED_WORDS, tail)


def evaluation_prompts(n: int = 256, seed: int = 2024) -> list[tuple[str, Scene]]:
    """Fixed captions and the scenes they were written for, the regimes in turn."""
    rng = np.random.default_rng(seed)
    names = list(REGIMES)
    scenes = [sample_scene(rng, names[i % len(names)]) for i in range(n)]
    return [(caption(scene, rng), scene) for scene in scenes]
