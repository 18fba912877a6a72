"""Scenes on the device: rendered as `world` does it, and sampled from the same distribution."""

from collections import Counter

import jax
import numpy as np
import pytest

from tt_jax.shapes import world
from tt_jax.shapes.training.scenes import from_scenes, render, sample


def test_rendered_as_the_world_renders():
    rng = np.random.default_rng(0)
    scenes = [world.sample_scene(rng) for _ in range(24)]
    found = np.asarray(jax.jit(render, static_argnums=1)(from_scenes(scenes), 20, 37)).astype(int)
    expected = np.stack([world.render(scene, 20, 37) for scene in scenes]).astype(int)
    # Positions are float32 here and float64 there: at an edge a value may round the other way.
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found != expected) < 1e-3


@pytest.fixture(scope="module")
def both():
    rng = np.random.default_rng(1)
    ours = jax.jit(sample, static_argnums=1)(jax.random.key(0), 6000)
    theirs = from_scenes([world.sample_scene(rng) for _ in range(6000)])
    return jax.tree.map(np.asarray, ours), theirs


def kinds(scenes):
    """For every scene what decides it, second objects that aren't there left out."""
    second = scenes.there[:, 1]
    columns = {"pair": second, "background": scenes.background, "pan": scenes.pan}
    for name in ("size", "direction", "speed", "place"):
        first, other = getattr(scenes, name).T
        moving = (scenes.direction > 0).T if name == "speed" else (True, True)
        columns[name] = np.where(moving[0], first, -1)
        columns[f"{name} 2"] = np.where(second & moving[1], other, -1)
    return columns


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("pair", "pan"),
        ("background",),
        ("size", "size 2"),
        ("direction", "speed"),
        ("direction", "direction 2"),
        ("place",),
        ("place 2",),
        ("pan", "size"),
    ],
    ids=str,
)
def test_sampled_as_the_world_samples(both, names):
    ours, theirs = (
        Counter(zip(*(kinds(scenes)[name].tolist() for name in names), strict=True))
        for scenes in both
    )
    for kind in ours | theirs:
        spread = 5 * (ours[kind] + theirs[kind]) ** 0.5 + 5
        assert abs(ours[kind] - theirs[kind]) < spread, (kind, ours[kind], theirs[kind])


@pytest.mark.slow
def test_sampled_scenes_keep_the_worlds_rules(both):
    for scenes in both:
        second = scenes.there[:, 1]
        assert (scenes.colour[second, 0] != scenes.colour[second, 1]).all()
        assert (scenes.size[second, 0] <= scenes.size[second, 1]).all()
        named = scenes.place > 0
        cells = np.array(list(world.PLACES.values()))[scenes.place - 1]
        pitch = np.array(list(world.PITCH.values()))[scenes.size]
        off = np.abs(scenes.at - world.SIDE / 2 - cells * pitch[..., None])[named]
        assert off.max() <= world.JITTER + 1e-5
    first = [scenes.at[scenes.place[:, 0] == 0, 0] for scenes in both]
    for axis in range(2):
        a, b = (np.histogram(at[:, axis], bins=16, range=(0, 64))[0] / len(at) for at in first)
        np.testing.assert_allclose(a, b, atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [0.0, 1.0])
def test_the_share_with_two_objects_can_be_asked_for(pairs):
    scenes = jax.jit(lambda key: sample(key, 50, pairs))(jax.random.key(0))
    assert (np.asarray(scenes.there[:, 1]) == bool(pairs)).all()
