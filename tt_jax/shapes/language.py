"""Captions of the world: the phrases they are made of, and what a caption says of a scene."""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from tt_jax.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    PLACES,
    REGIMES,
    SHAPES,
    SIZES,
    SPEEDS,
    STRIPED,
    Scene,
    pick,
    sample_scene,
)


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
    moves = [pick(rng, _moves(thing.direction, thing.speed)) for thing in scene.objects]
    if len(nouns) == 1:
        subject = f"{nouns[0]} {moves[0]}"
    elif scene.objects[0].velocity == scene.objects[1].velocity:
        subject = f"{nouns[0]} and {nouns[1]} both {moves[0]}"
    else:
        subject = f"{nouns[0]} {moves[0]} and {nouns[1]} {moves[1]}"
    on = pick(rng, _grounds(scene.background))
    text = pick(rng, (f"{subject} {on}", f"{on}, {subject}"))
    return text + pick(rng, _cameras(scene.pan))


def _noun(rng, thing):
    place = f" {pick(rng, _PLACE_WORDS[thing.place])}" if thing.place else ""
    return f"a {pick(rng, _SIZE_WORDS[thing.size])} {thing.colour} {thing.shape}{place}"


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
