from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from tt_jax.shapes.checker import measure
from tt_jax.shapes.language import ObjectFacts, caption, facts
from tt_jax.shapes.verdict import contrast, errors, judge
from tt_jax.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FPS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    positions,
    render,
    sample_scene,
)

FACTS = {"colour", "background", "shape", "count", "direction", "size", "speed", "camera"}


def spoil(video, rng, sigma=0.8, noise=0.03):
    """A blur and noise like a small VAE's."""
    step = np.arange(-3, 4)
    kernel = np.exp(-(step**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(video.astype(np.float32), ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    rows = sum(k * padded[:, i : i + 64] for i, k in enumerate(kernel))
    both = sum(k * rows[:, :, i : i + 64] for i, k in enumerate(kernel))
    return np.clip(both + rng.normal(0, noise * 255, both.shape) + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("blurred", [False, True], ids=["clean", "blur and noise"])
def test_right_on_rendered_truth(blurred):
    rng = np.random.default_rng(11)
    right = defaultdict(list)
    for _ in range(60):
        scene = sample_scene(rng)
        video = render(scene, 3 * FPS)
        if blurred:
            video = spoil(video, rng)
        for fact, verdict in judge(video, facts(scene)).items():
            right[fact].append(verdict)
    assert set(right) == FACTS
    assert {fact: np.mean(verdicts) >= 0.99 for fact, verdicts in right.items()} == dict.fromkeys(
        FACTS, True
    )


def other(rng, names, *but):
    names = [name for name in names if name not in but]
    return names[rng.integers(len(names))]


def lies(scene, rng):
    """The scene's facts with one of them changed, for each fact."""
    truth = facts(scene)
    i = rng.integers(len(truth.objects))
    thing = truth.objects[i]

    def with_object(**change):
        changed = replace(thing, **change)
        return replace(truth, objects=(*truth.objects[:i], changed, *truth.objects[i + 1 :]))

    used = [o.colour for o in truth.objects]
    yield "colour", with_object(colour=other(rng, COLOURS, *used))
    yield "shape", with_object(shape=other(rng, SHAPES, thing.shape))
    yield "size", with_object(size=other(rng, SIZES, thing.size))
    way = other(rng, [*DIRECTIONS, "still"], thing.direction)
    yield "direction", with_object(direction=way)
    yield "background", replace(truth, background=other(rng, BACKGROUNDS, truth.background))
    yield "camera", replace(truth, camera=other(rng, ("fixed", "left", "right"), truth.camera))
    if len(truth.objects) == 2:
        yield "count", replace(truth, objects=truth.objects[:1])
    else:
        second = ObjectFacts("square", other(rng, COLOURS, *used), "small", "still", None)
        yield "count", replace(truth, objects=(thing, second))


@pytest.mark.slow
def test_says_no_to_wrong_captions():
    rng = np.random.default_rng(12)
    believed = defaultdict(list)
    for _ in range(60):
        scene = sample_scene(rng)
        seen = measure(render(scene, 3 * FPS))
        for fact, said in lies(scene, rng):
            verdict = judge(seen, said)
            believed[fact].append(verdict[fact])
            if fact not in ("count", "colour"):  # a lie about one fact leaves the others true
                assert all(right for name, right in verdict.items() if name != fact)
    assert {fact: np.mean(verdicts) for fact, verdicts in believed.items()} == dict.fromkeys(
        FACTS - {"speed"}, 0.0
    )


def test_swapped_facts_of_two_objects_are_wrong():
    circle = Object("circle", "red", "small", 7.0, 16.0, 20.0, "right", "slow")
    square = Object("square", "blue", "small", 7.0, 46.0, 40.0)
    video = render(Scene((circle, square), "gray"), 3 * FPS)
    tail = "on a gray background"
    assert all(judge(video, f"a red circle moving right and a blue square at rest {tail}").values())
    verdict = judge(video, f"a blue circle moving right and a red square at rest {tail}")
    assert verdict["colour"]
    assert verdict["count"]
    assert not verdict["shape"]
    assert not verdict["direction"]


def test_nothing_to_see():
    empty = np.full((48, 64, 64, 3), 128, np.uint8)
    verdict = judge(empty, "a small red circle moving slowly left on a gray background")
    assert verdict.pop("background")
    assert not any(verdict.values())
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 64, 3), dtype=np.uint8)
    assert not judge(noise, "a small red circle at rest on a gray background")["count"]


def test_a_spare_object_is_counted_even_in_the_same_colour():
    one = Object("circle", "red", "small", 7.0, 16.0, 20.0)
    two = Object("square", "red", "small", 7.0, 46.0, 40.0)
    seen = measure(render(Scene((one, two), "white"), 2))
    assert seen.count.tolist() == [2, 2]


def test_an_object_behind_another_is_one_object():
    front = Object("circle", "yellow", "small", 7.0, 32.0, 14.0)
    back = Object("cross", "purple", "large", 23.0, 32.0, 32.0)
    seen = measure(render(Scene((front, back), "black"), 2))
    assert seen.count.tolist() == [2, 2]
    slots = [list(COLOURS).index(thing.colour) for thing in (front, back)]
    assert [SHAPES[s] for s in seen.shape[0, slots]] == ["circle", "cross"]
    np.testing.assert_allclose(seen.radius[0, slots], [7, 23], atol=0.2)


def test_places_and_radii_are_measured_to_a_fraction_of_a_pixel():
    rng = np.random.default_rng(13)
    for _ in range(8):
        scene = sample_scene(rng)
        seen = measure(render(scene, 32))
        for thing in scene.objects:
            slot = list(COLOURS).index(thing.colour)
            clear = seen.visible[:, slot] > 0.7
            off = np.abs(seen.centre[:, slot] - positions(thing, 32))[clear]
            assert off.max() < 0.35
            assert np.abs(seen.radius[clear, slot] - thing.radius).max() < 0.35


def test_a_long_true_video_has_no_errors():
    rng = np.random.default_rng(14)
    for regime in ("small_moving", "large_slow", "panning"):
        scene = sample_scene(rng, regime)
        curves = errors(render(scene, 15 * FPS), caption(scene, rng))
        limits = {"colour": 0.01, "background": 0.01, "motion": 0.1, "size": 0.02}
        for name, curve in curves.items():
            assert curve.shape == (15,)
            assert np.nanmax(curve) <= limits.get(name, 0), name


def test_a_fading_colour_shows_in_the_curve():
    thing = Object("square", "red", "medium", 12.0, 32.0, 32.0)
    scene = Scene((thing,), "white")
    video = render(scene, 12 * FPS).astype(np.float32)
    seconds = np.arange(len(video)) // FPS
    faded = video - np.array([1.0, 0, 0]) * 4 * seconds[:, None, None, None]
    curves = errors(np.clip(faded, 0, 255).astype(np.uint8), facts(scene))
    np.testing.assert_allclose(curves["colour"], 4 * np.arange(12) / 255, atol=2e-3)
    np.testing.assert_allclose(curves["background"], 4 * np.arange(12) / 255, atol=2e-3)
    assert contrast(curves["colour"]) == pytest.approx(4 * 7 / 255, abs=2e-3)
    assert curves["count"].max() == curves["lost"].max() == curves["shape"].max() == 0


def test_a_vanishing_object_is_lost_and_a_freezing_one_stands():
    thing = Object("circle", "green", "small", 7.0, 12.0, 32.0, "right", "fast")
    scene = Scene((thing,), "navy")
    video = render(scene, 4 * FPS)
    gone = np.concatenate([video[: 2 * FPS], render(Scene((), "navy"), 2 * FPS)])
    curves = errors(gone, facts(scene))
    assert curves["lost"].tolist() == curves["count"].tolist() == [0, 0, 1, 1]
    frozen = np.concatenate([video[: 2 * FPS], np.repeat(video[2 * FPS : 2 * FPS + 1], 32, axis=0)])
    motion = errors(frozen, facts(scene))["motion"]
    np.testing.assert_allclose(motion, [0, 0, 1, 1], atol=0.05)
