"""What the text encoder is asked, and the right answers."""

import jax
import numpy as np

from tt_jax.shapes import world
from tt_jax.shapes.training.reading import QUESTIONS, answers
from tt_jax.shapes.training.scenes import from_scenes


def test_answers_are_the_scenes_facts():
    rng = np.random.default_rng(0)
    scenes = [world.sample_scene(rng) for _ in range(200)]
    assert any(scene.objects[0].place is None for scene in scenes)
    found = np.asarray(jax.jit(answers)(from_scenes(scenes)))
    assert found.shape == (len(scenes), QUESTIONS)
    for scene, row in zip(scenes, found, strict=True):
        for i, thing in enumerate(scene.objects):
            shape, colour, size, direction, speed, place = row[6 * i : 6 * i + 6]
            assert world.SHAPES[shape - 1] == thing.shape
            assert list(world.COLOURS)[colour - 1] == thing.colour
            assert list(world.SIZES)[size - 1] == thing.size
            assert [None, *world.DIRECTIONS][direction] == thing.direction
            assert [None, *world.SPEEDS][speed] == thing.speed
            centre = world.centre(list(world.PLACES)[place - 1], thing.size)
            assert np.abs(np.array(centre) - (thing.x, thing.y)).max() <= world.JITTER
        assert (row[6:12] == 0).all() == (len(scene.objects) == 1)
        assert [None, "left", "right"][row[13]] == scene.pan
