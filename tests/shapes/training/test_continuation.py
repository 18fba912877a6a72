import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tt_jax
from tt_jax.shapes.training import rollouts
from tt_jax.shapes.training.continuation import SEEN, go_on
from tt_jax.shapes.training.scenes import from_scenes, render, sample
from tt_jax.shapes.world import Object, Scene

LENGTH = 12


def goes_on(asked, shown, start):
    """Frames rendered after those of `shown`, to whom `asked` what they should show."""
    start = jnp.full(len(asked.pan), start)
    frames = jax.jit(render, static_argnums=1)(shown, SEEN, start - SEEN)
    scenes, begin = jax.jit(go_on)(asked, frames.astype(jnp.float32), start)
    after = jax.jit(render, static_argnums=1)
    return np.asarray(after(scenes, LENGTH, begin), int), np.asarray(
        after(shown, LENGTH, start), int
    )


def error(made, right):
    return np.abs(made - right).mean(axis=(1, 2, 3, 4))


@pytest.mark.slow
def test_a_scene_goes_on_as_itself():
    scenes = sample(jax.random.key(0), 96)
    for start in (13, 130):
        made, right = goes_on(scenes, scenes, start)
        off = error(made, right)  # of 255; an object left out or mirrored is 2 to 20
        assert np.median(off) < 0.5 and off.max() < 6


def test_a_scene_that_was_left_goes_on_from_where_it_is():
    ball = Object("circle", "red", "medium", 8.0, 20.0, 32.0, "right", "slow")
    asked = from_scenes([Scene((ball,), "white")] * 3)
    lower = asked._replace(at=asked.at + jnp.array([[[0.0, 14.0]]]))
    back = lower._replace(direction=jnp.ones_like(lower.direction))  # to the left
    for shown in (lower, back):
        made, right = goes_on(asked, shown, 20)
        assert error(made, right).max() < 0.3


def test_an_object_that_was_lost_comes_back_and_a_sliding_ground_goes_on():
    ball = Object("circle", "red", "medium", 8.0, 20.0, 32.0, "right", "slow")
    asked = from_scenes([Scene((ball,), "navy", "left")] * 2)
    late = asked._replace(there=jnp.zeros_like(asked.there))
    made, _ = goes_on(asked, late, 20)
    frames = render(asked, LENGTH, 20)
    assert error(made, np.asarray(frames, int)).max() < 1


def test_a_ground_that_slid_too_far_goes_on_from_there():
    scenes = from_scenes(
        [Scene((Object("cross", "red", "small", 9.0, 32.0, 32.0),), "navy", "left")]
    )
    frames = jax.jit(render, static_argnums=1)(scenes, SEEN, 27 - SEEN)
    after, begin = jax.jit(go_on)(scenes, frames.astype(jnp.float32), jnp.array([20]))
    assert int(begin[0]) == 27 and float(jnp.abs(after.at - scenes.at).max()) < 1


@pytest.mark.slow
def test_what_comes_after_perfect_rollouts_is_the_truth():
    vae = tt_jax.load("shapes").vae
    assert vae is not None
    graph, state = nnx.split(vae)
    scenes = sample(jax.random.key(3), 4)
    video = jax.jit(render, static_argnums=1)(scenes, 4 * 9 - 3)
    latents = jax.jit(lambda video: vae.encode(video.astype(jnp.float32) / 127.5 - 1))(video)
    past, target = rollouts._continue(graph, 2, 2, state, scenes, latents, jax.random.key(0))
    twice = np.repeat(np.asarray(latents), 2, axis=0)
    for one, then, whole in zip(past, target, twice, strict=True):
        first = [f for f in (0, 3) if np.array_equal(one, whole[f : f + 6].astype(np.float16))]
        assert first and np.array_equal(then[:3], one[:3])
        off = np.asarray(then[3:], float) - whole[first[0] + 3 : first[0] + 6]
        assert np.sqrt(np.mean(off**2)) < 0.15 * whole.std()
