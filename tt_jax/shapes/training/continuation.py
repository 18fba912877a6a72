"""What should come after a video's frames, whatever they show: the scene goes on from there.

A model whose own chunks have left the scene learns nothing from the frames of the scene itself,
which would have its objects jump; it must be shown how the video that it made goes on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tt_jax.nn.layers import to_rank
from tt_jax.shapes.training.scenes import PANS, RADII, WAYS, Scenes, motion, positions
from tt_jax.shapes.world import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIDE, STRIPE

SEEN = 9  # frames that are looked at
_ENOUGH = 6  # pixels within an object, below which it isn't seen
_FINE = 1.5  # pixels between two estimates of a centre, below which the finer one is taken
_LAG = 6  # frames over which a motion is measured
_CLEAR = 1.0  # pixels within these, above which its way is clear
_BACK = np.array(
    [0] + [1 + list(DIRECTIONS.values()).index((-x, -y)) for x, y in DIRECTIONS.values()], np.int32
)


def go_on(
    scenes: Scenes, frames: Float[Array, "b seen side side 3"], start: Int[Array, " b"]
) -> tuple[Scenes, Int[Array, " b"]]:
    """Scenes whose objects are where the frames show them, and go on as they move there.

    An object that isn't seen is where its scene has it. One that moves against its direction has
    turned at a border. Shapes, sizes and colours are the scene's own, and so is a panning ground's
    speed, but not its phase.

    Args:
        scenes: what the frames should show.
        frames: the last `SEEN` ones, RGB in [0, 255].
        start: number of the frame after them.

    Returns:
        Scenes, and the frame at which each is to be rendered from.
    """
    return jax.vmap(_go_on)(scenes, frames, start)


def _go_on(scene: Scenes, frames: Array, start: Array) -> tuple[Scenes, Array]:
    tones = np.array([(tones[0], tones[-1]) for tones in BACKGROUNDS.values()], np.float32)
    ground = jnp.asarray(tones)[scene.background]
    colours = jnp.asarray(np.array(list(COLOURS.values()), np.float32))[scene.colour]
    all_tones = jnp.concatenate([colours, ground])[None, None, None]
    away = jnp.sum((frames[..., None, :] - all_tones) ** 2, axis=-1)
    nearest = jnp.argmin(away, axis=-1)  # of the two objects and the ground's two tones

    slid = _slid(nearest[-1], frames[-1], ground)
    start = _by_ground(scene.pan, slid, start)
    centre, pixels = _centres(scene, nearest)
    seen = (pixels >= _ENOUGH) & scene.there[None]
    move, radius = motion(scene), jnp.asarray(RADII)[scene.size][:, None]

    truth = positions(scene.at, move, radius[:, 0], 2, start - 2)
    last = jnp.max(jnp.where(seen, jnp.arange(SEEN)[:, None], -1), axis=0)
    # Over few frames, since it may just have turned.
    first = jnp.maximum(jnp.argmax(seen, axis=0), last - _LAG)
    there = last >= SEEN - 4
    at = jnp.take_along_axis(centre, jnp.maximum(last, 0)[None, :, None], axis=0)[0]
    begun = jnp.take_along_axis(centre, first[None, :, None], axis=0)[0]
    moved = jnp.where(there[:, None], at - begun, truth[1] - truth[0])
    at = jnp.where(there[:, None], jnp.clip(at, radius, SIDE - radius), truth[1])

    way = jnp.asarray(WAYS)[scene.direction]
    along = jnp.sum(way * moved, axis=-1)
    # Where its way isn't clear, it moves away from a border at which it is.
    ahead = jnp.sum(way * (at - SIDE / 2), axis=-1)
    blocked = ahead + radius[:, 0] > SIDE / 2 - 2
    clear = jnp.abs(along) > jnp.where(there, _CLEAR, 0.0)
    turned = jnp.where(clear, along < 0, blocked)
    direction = jnp.where(turned, jnp.asarray(_BACK)[scene.direction], scene.direction)
    move = jnp.where(turned[:, None], -move, move)
    # As though it had come from frame 0 on that way: `positions` folds it back at the borders.
    at = at - (start - 1).astype(jnp.float32) * move
    return scene._replace(at=at, direction=direction), start


def _centres(scene: Scenes, nearest: Int[Array, "t h w"]) -> tuple[Array, Array]:
    """Centres (x, y) of the objects, `[t, o, 2]`, and how many pixels lie within them, `[t, o]`."""
    mask = nearest[..., None] == np.arange(2, dtype=np.int32)[None, None, None]
    # Pixels of one object's edge may have the other's colour: these aren't within anything.
    inner = jax.lax.reduce_window(
        mask.astype(jnp.float32), 1.0, jax.lax.min, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    )
    radius = jnp.asarray(RADII)[scene.size]
    low = jnp.where(scene.shape == SHAPES.index("triangle"), 0.866 / 3 * radius, 0.0)

    def middle(axis: int, shift: Array) -> Array:
        some = jnp.max(inner, axis=axis) > 0
        first, last = jnp.argmax(some, axis=1), SIDE - jnp.argmax(some[:, ::-1], axis=1)
        box = (first + last).astype(jnp.float32) / 2
        place = to_rank(jnp.arange(SIDE, dtype=jnp.float32)[:, None] + 0.5, 3)
        count = jnp.sum(mask, axis=axis, dtype=jnp.float32)
        mean = jnp.sum(count * place, axis=1) / jnp.maximum(jnp.sum(count, axis=1), 1)
        # The mean is finer, but only of an object that has its shape and isn't covered.
        mean = mean - shift[None]
        return jnp.where(jnp.abs(mean - box) < _FINE, mean, box)

    centre = jnp.stack([middle(1, jnp.zeros(2)), middle(2, low)], axis=-1)
    return centre, jnp.sum(inner, axis=(1, 2))


def _slid(
    nearest: Int[Array, "h w"], frame: Float[Array, "h w 3"], ground: Float[Array, "2 3"]
) -> Float[Array, ""]:
    """Pixels by which the stripes have slid to the left, from minus to plus a stripe's width."""
    mask = (nearest >= 2).astype(jnp.float32)
    axis = ground[1] - ground[0]
    share = jnp.sum((frame - ground[:1][None]) * axis[None, None], axis=-1)
    column = jnp.sum(mask * share, axis=0) / jnp.maximum(jnp.sum(mask, axis=0), 1)
    turns = np.pi / STRIPE * (np.arange(SIDE, dtype=np.float32) + 0.5)
    # The second tone is a stripe's width on, where the cosine is least.
    real, imaginary = -jnp.sum(column * np.cos(turns)), jnp.sum(column * np.sin(turns))
    return STRIPE / np.pi * jnp.arctan2(imaginary, real)


def _by_ground(pan: Array, slid: Array, start: Array) -> Array:
    """The frame nearest to `start` before which a panning ground has slid as far."""
    speed = jnp.asarray(PANS)[pan]
    off = (slid - speed * (start - 1).astype(jnp.float32) + STRIPE) % (2 * STRIPE) - STRIPE
    shift = jnp.where(pan > 0, off / jnp.where(pan > 0, speed, 1.0), 0.0)
    return start + jnp.round(shift).astype(start.dtype)
