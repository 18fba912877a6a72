"""The world on the device: scenes sampled and rendered in JAX, as `world` does it one by one.

Axes: B scene, O = 2 objects (the first in front), T frame.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from tt_jax.nn.layers import to_rank
from tt_jax.shapes import world
from tt_jax.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    PLACES,
    REGIMES,
    SHAPES,
    SIDE,
    SIZES,
    SPEEDS,
    STRIPED,
    Scene,
)

TRIES = 40  # arrangements of two objects, of which the first good one or the best is taken
RADII = np.array(list(SIZES.values()), np.float32)
PACE = np.array(list(SPEEDS.values()), np.float32)
# Index 0 of directions is "still", of places "not named", of the camera's motion "fixed".
WAYS = np.array([(0, 0), *DIRECTIONS.values()], np.float32)
PANS = np.array([0.0, -world.PAN_SPEED, world.PAN_SPEED], np.float32)  # fixed, left, right


class Scenes(NamedTuple):
    """Many scenes, of two objects each; numbers are places in the world's tables, in their order.

    Attributes:
        there: which of the objects there are.
        shape: of each.
        colour: of each.
        size: of each.
        direction: from 1; 0 is at rest.
        speed: of each.
        place: from 1; 0 isn't named.
        at: centres (x, y) at frame 0, in pixels.
        background: of each scene.
        pan: from 1; 0 is a fixed camera.
    """

    there: Bool[Array, "b o"]
    shape: Int[Array, "b o"]
    colour: Int[Array, "b o"]
    size: Int[Array, "b o"]
    direction: Int[Array, "b o"]
    speed: Int[Array, "b o"]
    place: Int[Array, "b o"]
    at: Float[Array, "b o 2"]
    background: Int[Array, " b"]
    pan: Int[Array, " b"]


def from_scenes(scenes: Sequence[Scene]) -> Scenes:
    """Scenes of `world` in this form."""

    def objects(number, kind: type = np.int32) -> Array:
        rows = [[number(thing) for thing in scene.objects] for scene in scenes]
        return jnp.asarray(np.array([(row + row)[:2] for row in rows], kind))

    return Scenes(
        jnp.array([[True, len(scene.objects) > 1] for scene in scenes]),
        objects(lambda thing: SHAPES.index(thing.shape)),
        objects(lambda thing: list(COLOURS).index(thing.colour)),
        objects(lambda thing: list(SIZES).index(thing.size)),
        objects(lambda thing: [None, *DIRECTIONS].index(thing.direction)),
        objects(lambda thing: list(SPEEDS).index(thing.speed or next(iter(SPEEDS)))),
        objects(lambda thing: [None, *PLACES].index(thing.place)),
        objects(lambda thing: (thing.x, thing.y), np.float32),
        jnp.array([list(BACKGROUNDS).index(scene.background) for scene in scenes]),
        jnp.array([[None, "left", "right"].index(scene.pan) for scene in scenes]),
    )


# --- sampling -----------------------------------------------------------------------------------


def _regimes() -> tuple[np.ndarray, ...]:
    """For each regime: whether it has each size, each speed, and its share of objects at rest."""
    kinds = REGIMES.values()
    sizes = np.array([[name in kind.sizes for name in SIZES] for kind in kinds])
    speeds = np.array([[name in kind.speeds for name in SPEEDS] for kind in kinds])
    return sizes, speeds, np.array([kind.still for kind in kinds], np.float32)


def _rooms() -> np.ndarray:
    """[size, direction, speed, place]: whether an object may begin there."""
    return np.array(
        [
            [
                [
                    [world.has_room(place, size, way, way and pace) for place in PLACES]
                    for pace in SPEEDS
                ]
                for way in (None, *DIRECTIONS)
            ]
            for size in SIZES
        ]
    )


def _unnamed() -> np.ndarray:
    """[second object there, direction, direction, object]: the places that captions leave out."""
    names, ways = list(PLACES), (None, *DIRECTIONS)
    alone = [[[names.index(world.unnamed_places([a])[0]), 0] for _ in ways] for a in ways]
    both = [[[names.index(p) for p in world.unnamed_places([a, b])] for b in ways] for a in ways]
    return np.array([alone, both])


def _choose(key: Key[Array, ""], allowed: Array) -> Array:
    """One of the allowed numbers, all alike."""
    return jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf))


def _sample(key: Key[Array, ""], pairs: float) -> Scenes:
    keys = iter(jax.random.split(key, 24))
    sizes, speeds, still = (jnp.asarray(table) for table in _regimes())
    shares = np.array([regime.share for regime in REGIMES.values()], np.float32)
    kind = jax.random.categorical(next(keys), jnp.log(shares))
    panning, middle = (kind == list(REGIMES).index(name) for name in ("panning", "medium"))
    striped = jnp.array([name in STRIPED for name in BACKGROUNDS])
    background = _choose(next(keys), striped | ~panning)
    pan = jnp.where(panning, 1 + jax.random.randint(next(keys), (), 0, 2), 0)

    small, medium, large = range(len(SIZES))
    first = jnp.where(middle, medium, _choose(next(keys), sizes[kind]))
    lesser = sizes[kind].at[large].set(False)
    second = jnp.where(first == large, small, _choose(next(keys), lesser.at[small].set(True)))
    size = jnp.stack([first, second])

    def motion(share: Array) -> tuple[Array, Array]:
        way = 1 + jax.random.randint(next(keys), (), 0, len(DIRECTIONS))
        rests = jax.random.uniform(next(keys)) < share
        return jnp.where(rests, 0, way), _choose(next(keys), speeds[kind])

    way, pace = motion(still[kind])
    other_way, other_pace = motion(jnp.zeros(()))
    same = jax.random.uniform(next(keys)) < jnp.where(way > 0, 0.5, 0.75)
    direction = jnp.stack([way, jnp.where(same, way, jnp.where(way > 0, 0, other_way))])
    speed = jnp.stack([pace, jnp.where(same, pace, other_pace)])
    there = jnp.stack([jnp.array(True), jax.random.uniform(next(keys)) < pairs])
    shape = jax.random.randint(next(keys), (2,), 0, len(SHAPES))
    colour = jax.random.randint(next(keys), (), 0, len(COLOURS))
    shift = jax.random.randint(next(keys), (), 1, len(COLOURS))
    colour = jnp.stack([colour, (colour + shift) % len(COLOURS)])

    swap = there[1] & (size[1] < size[0])  # the smaller in front
    order = jnp.where(swap, jnp.array([1, 0]), jnp.array([0, 1]))
    size, direction, speed, shape, colour = (
        x[order] for x in (size, direction, speed, shape, colour)
    )
    named = jax.random.uniform(next(keys)) >= world.UNNAMED
    place, at = _arrange(next(keys), named, there, size, direction, speed)
    place = jnp.where(named, 1 + place, 0)
    return Scenes(there, shape, colour, size, direction, speed, place, at, background, pan)


def _arrange(key, named, there, size, direction, speed) -> tuple[Array, Array]:
    """Places of the objects, and where exactly they begin: apart for most of three seconds."""
    cells = np.array(list(PLACES.values()), np.float32)
    pitch = jnp.asarray(np.array([world.PITCH[name] for name in SIZES], np.float32))[size]
    room = jnp.asarray(_rooms())[size, direction, speed]
    unnamed = jnp.asarray(_unnamed())[there[1].astype(int), direction[0], direction[1]]
    where, off = jax.random.split(key)
    drawn = jax.random.categorical(where, jnp.where(room, 0.0, -jnp.inf), shape=(TRIES, 2))
    place = jnp.where(named, drawn, unnamed[None])
    jitter = jax.random.uniform(off, (TRIES, 2, 2), minval=-world.JITTER, maxval=world.JITTER)
    at = SIDE / 2 + jnp.asarray(cells)[place] * pitch[None, :, None] + jitter
    move = jnp.asarray(WAYS)[direction] * jnp.asarray(PACE)[speed][:, None]
    radius = jnp.asarray(RADII)[size]
    path = positions(at, move, radius, 3 * world.FPS, 0)  # tries, t, o, 2
    gap = jnp.abs(path[:, :, 0] - path[:, :, 1]).max(axis=-1)
    overlap = jnp.maximum(0, 1 - gap / (radius.sum() + 1))
    score = jnp.where(there[1], overlap.mean(axis=1) + overlap[:, 0], 0.0)
    good = score < 0.05
    best = jnp.where(good.any(), jnp.argmax(good), jnp.argmin(score))
    return place[best], at[best]


def sample(key: Key[Array, ""], count: int, pairs: float = world.PAIRS) -> Scenes:
    """Draws scenes as `world.sample_scene` does, but for the share with two objects.

    Args:
        key: of the draws.
        count: how many.
        pairs: share with two objects.

    Returns:
        The scenes.
    """
    return jax.vmap(lambda key: _sample(key, pairs))(jax.random.split(key, count))


def cells(scenes: Scenes) -> Int[Array, "b o"]:
    """Where objects begin, as numbers in `world.PLACES`, whether a caption names it or not."""
    pitch = jnp.asarray(np.array([world.PITCH[name] for name in SIZES], np.float32))[scenes.size]
    steps = jnp.round((scenes.at - SIDE / 2) / pitch[..., None]).astype(jnp.int32)
    return 4 + steps[..., 0] + 3 * steps[..., 1]  # three columns by three rows, row by row


# --- rendering ----------------------------------------------------------------------------------


def motion(scenes: Scenes) -> Float[Array, "*b o 2"]:
    """How objects move at first.

    Args:
        scenes: what moves.

    Returns:
        Pixels a frame.
    """
    return jnp.asarray(WAYS)[scenes.direction] * jnp.asarray(PACE)[scenes.speed][..., None]


def positions(
    at: Float[Array, "*b o 2"],
    move: Float[Array, "o 2"] | Float[Array, "*b o 2"],
    radius: Float[Array, " o"] | Float[Array, "*b o"],
    frames: int,
    start: Int[Array, ""] | int,
) -> Float[Array, "*b t o 2"]:
    """Centres over time: a triangle wave along each axis.

    Args:
        at: centres at frame 0, pixels.
        move: pixels a frame.
        radius: of the objects, pixels.
        frames: how many.
        start: the first of them.

    Returns:
        Centres (x, y), pixels.
    """
    rank = at.ndim + 1
    time = to_rank((start + jnp.arange(frames)).astype(jnp.float32)[:, None, None], rank)
    free = at[..., None, :, :] + time * to_rank(move[..., None, :, :], rank)
    low = to_rank(radius[..., None, :, None], rank)
    span = SIDE - 2 * low
    return low + span - jnp.abs((free - low) % (2 * span) - span)


def _distance(shape: Array, radius: Array, x: Array, y: Array) -> Array:
    """`world.distance` of each kind, and of them the one asked for."""
    wide, tall = jnp.abs(x), jnp.abs(y)
    along, across = jnp.maximum(wide, tall), jnp.minimum(wide, tall)
    height = 0.866 * radius
    kinds = {
        "circle": jnp.sqrt(x * x + y * y) - radius,
        "square": along - 0.886 * radius,
        "triangle": jnp.maximum(y - height, 0.866 * wide - 0.5 * (y + height)),
        "cross": jnp.maximum(along - radius, across - 0.36 * radius),
    }
    return jnp.select([shape == i for i in range(len(SHAPES))], [kinds[name] for name in SHAPES])


def render(
    scenes: Scenes, frames: int, start: Int[Array, " b"] | Int[Array, ""] | int = 0
) -> UInt8[Array, "b t side side 3"]:
    """Frames of every scene, as `world.render` makes them.

    Args:
        scenes: what to show.
        frames: how many.
        start: the first of them, or each scene's own.

    Returns:
        The frames.
    """

    def one(scene: Scenes, start: Array) -> Array:
        grid = jnp.arange(SIDE, dtype=jnp.float32) + 0.5
        tones = np.array([(tones[0], tones[-1]) for tones in BACKGROUNDS.values()], np.float32)
        dark, bright = (tone[None, None, None] for tone in jnp.asarray(tones)[scene.background])
        time = (start + jnp.arange(frames)).astype(jnp.float32)[:, None]
        along = (grid[None] + jnp.asarray(PANS)[scene.pan] * time) % (2 * world.STRIPE)
        cover = jnp.clip(0.5 - (jnp.abs(along - world.STRIPE) - world.STRIPE / 2), 0, 1)
        ground = dark + cover[:, None, :, None] * (bright - dark)
        image = jnp.broadcast_to(ground, (frames, SIDE, SIDE, 3))
        radius = jnp.asarray(RADII)[scene.size]
        path = positions(scene.at, motion(scene), radius, frames, start)
        colours = jnp.asarray(np.array(list(COLOURS.values()), np.float32))
        for thing in (1, 0):
            x = grid[None, None] - path[:, thing, 0][:, None, None]
            y = grid[None, :, None] - path[:, thing, 1][:, None, None]
            cover = jnp.clip(0.5 - _distance(scene.shape[thing], radius[thing], x, y), 0, 1)
            cover = jnp.where(scene.there[thing], cover, 0.0)[..., None]
            colour = colours[scene.colour[thing]][None, None, None]
            image = image + cover * (colour - image)
        return (image + 0.5).astype(jnp.uint8)

    return jax.vmap(one)(scenes, jnp.broadcast_to(jnp.asarray(start), scenes.pan.shape))
