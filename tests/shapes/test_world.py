import re

import numpy as np
import pytest

from tt_jax.shapes import language, world
from tt_jax.shapes.language import caption, evaluation_prompts, facts, parse
from tt_jax.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    REGIMES,
    SHAPES,
    SIDE,
    STEADY,
    Object,
    Scene,
    positions,
    render,
    sample_scene,
)


def scenes(n, seed=0, regime=None):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, regime) for _ in range(n)]


def test_same_seed_same_world():
    assert scenes(50, seed=4) == scenes(50, seed=4)
    assert scenes(50, seed=4) != scenes(50, seed=5)
    assert evaluation_prompts() == evaluation_prompts()
    first, second = (caption(scenes(1)[0], np.random.default_rng(i)) for i in (1, 1))
    assert first == second


@pytest.mark.slow
def test_world_is_as_rich_as_promised():
    found = scenes(3000)
    things = [thing for scene in found for thing in scene.objects]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.size for t in things} == set(world.SIZES)
    assert {t.direction for t in things} == {*world.DIRECTIONS, None}
    assert {t.speed for t in things} == {*world.SPEEDS, None}
    assert {s.background for s in found} == set(BACKGROUNDS)
    assert {s.pan for s in found} == {"left", "right", None}
    assert {s.regime for s in found} == set(REGIMES)
    assert {len(s.objects) for s in found} == {1, 2}
    assert {t.place for t in things} == {*world.PLACES, None}
    assert {(t.size, t.radius) for t in things} == set(world.SIZES.items())
    unnamed = np.mean([s.objects[0].place is None for s in found])
    assert abs(unnamed - 1 / 3) < 0.04


def test_colours_are_apart():
    tones = [np.array(tone) for tones in BACKGROUNDS.values() for tone in tones]
    colours = [np.array(colour) for colour in COLOURS.values()]
    for i, colour in enumerate(colours):
        assert min(np.linalg.norm(colour - tone) for tone in tones) > 100
        assert all(np.linalg.norm(colour - other) > 140 for other in colours[i + 1 :])


@pytest.mark.parametrize("regime", REGIMES)
def test_objects_stay_in_the_frame(regime):
    for scene in scenes(60, regime=regime):
        for thing in scene.objects:
            at = positions(thing, 120 * world.FPS)
            assert at.min() >= thing.radius - 1e-9
            assert at.max() <= SIDE - thing.radius + 1e-9


def test_objects_keep_their_first_direction():
    for scene in scenes(500):
        for thing in scene.objects:
            at = positions(thing, STEADY + 1)
            expected = at[0] + np.arange(STEADY + 1)[:, None] * np.array(thing.velocity)
            np.testing.assert_allclose(at, expected, atol=1e-9)


def test_objects_begin_at_their_places():
    for scene in scenes(500):
        named = [thing.place is not None for thing in scene.objects]
        assert len(set(named)) == 1
        if not named[0]:
            places = world.unnamed_places([thing.direction for thing in scene.objects])
        else:
            places = [thing.place for thing in scene.objects]
        for place, thing in zip(places, scene.objects, strict=True):
            off = np.array(world.centre(place, thing.size)) - (thing.x, thing.y)
            assert np.abs(off).max() <= world.JITTER


def test_unnamed_places_have_room():
    assert world.unnamed_places([None]) == ["centre"]
    assert world.unnamed_places(["left"]) == ["right"]
    assert world.unnamed_places([None, None]) == ["left", "right"]
    assert world.unnamed_places(["up", None]) == ["lower left", "right"]
    assert world.unnamed_places(["right", None]) == ["upper left", "bottom"]


def test_two_objects_differ_in_colour_and_the_smaller_is_in_front():
    order = list(world.SIZES)
    for scene in scenes(500):
        if len(scene.objects) == 2:
            front, back = scene.objects
            assert front.colour != back.colour
            assert order.index(front.size) <= order.index(back.size)


def test_a_bounce_is_a_triangle_wave():
    thing = Object("circle", "red", "small", 6.0, 50.4, 32.0, "right", "fast")
    x = positions(thing, 200)[:, 0]
    # 58 is the furthest; 50.4 + t meets it at t = 7.6.
    np.testing.assert_allclose(x[6:10], [56.4, 57.4, 57.6, 56.6])
    np.testing.assert_allclose(np.abs(np.diff(x)).max(), 1)
    assert x.min() < 7


def test_frames_need_no_predecessors():
    for scene in scenes(8, seed=1):
        whole = render(scene, 40)
        assert whole.shape == (40, SIDE, SIDE, 3)
        assert whole.dtype == np.uint8
        np.testing.assert_array_equal(render(scene, 7, start=33), whole[33:])


def test_render_shows_what_the_scene_says():
    thing = Object("square", "blue", "medium", 12.0, 30.0, 34.0)
    frame = render(Scene((thing,), "white"), 1)[0]
    assert tuple(frame[34, 30]) == COLOURS["blue"]
    assert tuple(frame[0, 0]) == BACKGROUNDS["white"][0]
    inside = (frame == np.array(COLOURS["blue"])).all(axis=-1).sum()
    assert abs(inside - (2 * 0.886 * 12) ** 2) < 60


def test_edges_move_by_less_than_a_pixel():
    thing = Object("circle", "red", "small", 6.0, 20.0, 20.0, "right", "slow")
    frames = render(Scene((thing,), "black"), 4).astype(np.float64)
    mass = frames[..., 0] - frames[0, 0, 0, 0]
    x = (mass.sum(axis=1) * (np.arange(SIDE) + 0.5)).sum(axis=1) / mass.sum(axis=(1, 2))
    np.testing.assert_allclose(x, 20 + 0.5 * np.arange(4), atol=0.03)


def test_the_ground_slides_against_the_camera():
    thing = Object("circle", "red", "small", 6.0, 32.0, 10.0)
    still, right = (render(Scene((thing,), "navy", pan), 17) for pan in (None, "right"))
    np.testing.assert_array_equal(still[0], still[16])
    np.testing.assert_array_equal(right[0, 40:, 8:], right[16, 40:, :-8])  # 16 frames, 8 pixels


@pytest.mark.parametrize("regime", REGIMES)
def test_captions_say_what_parse_reads(regime):
    rng = np.random.default_rng(2)
    for scene in scenes(300, regime=regime):
        text = caption(scene, rng)
        assert text == text.lower()
        assert len(text.split()) <= 33
        said, shown = parse(text), facts(scene)
        assert said.objects == shown.objects
        assert said.background == shown.background
        assert said.camera in ({shown.camera} if scene.pan else {None, "fixed"})


def test_parse_reads_the_likes_of_a_user():
    said = parse("A red circle moving left")
    assert said.objects == (language.ObjectFacts("circle", "red", None, "left", None),)
    assert said.background is None
    assert said.camera is None
    said = parse("a blue square at the top left going to the right and a cross in the middle")
    assert [(o.place, o.direction) for o in said.objects] == [
        ("upper left", "right"),
        ("centre", None),
    ]
    with pytest.raises(ValueError, match="no shape"):
        parse("a dog on a white background")


@pytest.mark.slow
def test_the_words_are_those_of_captions():
    rng = np.random.default_rng(3)
    found = {w for scene in scenes(2000) for w in re.findall(r"[a-z-]+", caption(scene, rng))}
    assert language.words() == found


@pytest.mark.slow
def test_every_word_of_the_grammar_is_reachable():
    rng = np.random.default_rng(3)
    words = {w for scene in scenes(2000) for w in re.findall(r"[a-z-]+", caption(scene, rng))}
    tables = [
        *language._SIZE_WORDS.values(),
        *language._SPEED_WORDS.values(),
        language._VERBS,
        language._STILL,
    ]
    tables += language._PLACE_WORDS.values()
    known = {word for table in tables for phrase in table for word in phrase.split()}
    known |= {*COLOURS, *BACKGROUNDS, *SHAPES, "up", "down", "left", "right", "upward", "downward"}
    glue = "a and both on over plain background striped stripes to the camera fixed pans panning"
    assert words == known | set(glue.split())


def test_evaluation_prompts_cover_the_regimes_evenly():
    prompts = evaluation_prompts()
    assert len(prompts) == 256
    regimes = [scene.regime for _, scene in prompts]
    assert {regimes.count(name) for name in REGIMES} == {64}
    assert all(parse(text).objects == facts(scene).objects for text, scene in prompts)
