import numpy as np
import pytest

from tt_jax.lab import truth
from tt_jax.shapes.checker import measure
from tt_jax.shapes.world import Object, Scene, render

SECONDS = 3
CIRCLE = Object("circle", "red", "medium", 14.0, 18.0, 32.0, "right", "slow")
SCENE = Scene((CIRCLE,), "white")
PROMPT = "a medium red circle moving right slowly on a white background"


def curves(video, prompt=PROMPT):
    return truth.curves(measure(video), prompt)


def still(**changes):
    """The scene's object at rest, changed."""
    fields = vars(CIRCLE) | {"direction": None, "speed": None} | changes
    return Scene((Object(**fields),), "white")


@pytest.fixture(scope="module")
def right():
    return render(SCENE, SECONDS * 16)


def test_a_right_video_has_no_errors(right):
    found = curves(right)
    assert {len(curve) for curve in found.values()} == {SECONDS}
    for name in truth.ERRORS:
        np.testing.assert_allclose(found[name], 0, atol=0.02, err_msg=name)
    np.testing.assert_array_equal(found["moving"], 1)


@pytest.mark.parametrize(
    ("name", "scene", "expected"),
    [
        # Red to purple: (190-225, 30-35, 205-35) / 255.
        ("colour_error", still(colour="purple"), np.linalg.norm([35, 5, 170]) / 255),
        # White to gray: 117 in each of three colours.
        ("background_error", Scene((CIRCLE,), "gray"), 117 / 255 * 3**0.5),
        ("shape_error", still(shape="square"), 1.0),
        ("size_error", still(radius=28.0, size="large"), 1.0),  # an octave above 14
        ("count_error", Scene((), "white"), 1.0),
        ("lost", Scene((), "white"), 1.0),
        ("speed_error", still(), 0.5),
        ("moving", still(), 0.0),
    ],
)
def test_known_errors(name, scene, expected):
    found = curves(render(scene, 32))
    np.testing.assert_allclose(found[name], expected, atol=0.03)


def test_a_jump_shows_in_its_second(right):
    jumped = np.concatenate([right[:32], render(Scene((), "white"), 16)])
    np.testing.assert_allclose(curves(jumped)["lost"], [0, 0, 1])
    np.testing.assert_allclose(curves(jumped)["moving"], [1, 1, 0])
    np.testing.assert_array_equal(np.isnan(curves(jumped)["colour_error"]), [0, 0, 1])


def test_moving_asks_nothing_of_colour_and_of_things_at_rest(right):
    blue = render(Scene((Object(**vars(CIRCLE) | {"colour": "blue"}),), "white"), 32)
    np.testing.assert_array_equal(curves(blue)["moving"], 1)
    at_rest = "a medium red circle standing still on a white background"
    assert np.isnan(curves(right, at_rest)["moving"]).all()
    half = "a medium red circle and a small blue square both moving right slowly on a white"
    np.testing.assert_array_equal(curves(right, half)["moving"], 0.5)


def test_object_tokens():
    # A circle of radius 12 at (32, 32): its box is pixels 20 to 44, cells 2 to 5 of 8 pixels; of
    # the corner cells the nearest pixel corner is (24, 24), 11.3 away, so they are touched too.
    seen = measure(render(still(x=32.0, radius=12.0), 2))
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(truth.object_tokens(seen, slice(0, 1), (8, 8)), expected)
    # Where it moves it covers the places of all frames given.
    seen = measure(render(SCENE, 17))
    first, both = (truth.object_tokens(seen, s, (8, 8)) for s in (slice(0, 1), slice(0, 17, 16)))
    assert first[4, 1] and not first[4, 5] and both[4, 1] and both[4, 5]
    nothing = measure(render(Scene((), "white"), 1))
    assert not truth.object_tokens(nothing, slice(0, 1), (8, 8)).any()


def test_place_error_knows_the_ground_the_objects_and_what_is_foreign():
    video = np.full((3, 64, 64, 3), 245, np.uint8)
    video[1, 8:16, 16:32] = (225, 35, 35)  # the object's red
    video[2, 8:16, 16:24] = (15, 15, 15)  # black: no colour of this prompt, 0.743 from red
    found = truth.place_error(video, PROMPT, (1,), (2, 3), (8, 8))
    black = np.linalg.norm([210, 20, 20]) / 255
    np.testing.assert_allclose(found, [0, 0, black / 2], atol=1e-6)
    elsewhere = truth.place_error(video, PROMPT, (0,), (0,), (8, 8))
    np.testing.assert_allclose(elsewhere, 0, atol=1e-6)
    # Between the tones of stripes nothing is foreign.
    mixed = np.full((1, 64, 64, 3), (127, 85, 52), np.uint8)
    assert truth.place_error(mixed, "a red circle on brown stripes", (0,), (0,), (8, 8)) < 0.01


def test_recovery():
    before = np.tile([0.1, 0.3], 16 * 3)[: 16 * 3]  # every second's mean is 0.2
    assert truth.recovery(np.r_[before, np.full(32, 0.2)], 48) == 0
    # Two seconds of error, then as before; the first whole second without any begins after them.
    gone = np.r_[before, np.full(32, 0.9), np.tile([0.1, 0.3], 16)]
    assert truth.recovery(gone, 48) == 2.0
    assert truth.recovery(np.r_[before, np.full(48, 0.9)], 48) == 3.0  # never
    late = np.r_[before, np.full(16, 0.2), np.full(16, 0.9), np.full(32, 0.2)]
    assert truth.recovery(late, 48) == pytest.approx(2.0)
    assert np.isnan(truth.recovery(gone, 31)) and np.isnan(truth.recovery(before, 40))
    # The second's own spread before is forgiven: means 0.1 and 0.3, so up to 0.4.
    wide = np.r_[np.full(16, 0.1), np.full(16, 0.3)]
    assert truth.recovery(np.r_[wide, np.full(16, 0.39)], 32) == 0
    assert truth.recovery(np.r_[wide, np.full(16, 0.41)], 32) == 1.0


def test_precision_and_recall():
    planted = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    first = np.array([1, 1, 0, 0, 1, 0, 0, 0], bool)
    second = np.array([1, 0, 1, 0, 0, 0, 0, 0], bool)
    assert truth.precision_recall(first[None], planted) == (2 / 3, 1 / 2)
    assert truth.precision_recall(np.stack([first, second]), planted) == (3 / 4, 3 / 4)
    precision, recall = truth.precision_recall(np.zeros((2, 8), bool), planted)
    assert np.isnan(precision) and recall == 0
