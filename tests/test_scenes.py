"""Scenes of a video from one line of text."""

import pytest

from tt_jax.scenes import Scene, first_chunks, parse_scenes


@pytest.mark.parametrize(
    ("text", "scenes"),
    [
        ("a cat", [Scene("a cat")]),
        ("a cat [10s] | a dog [5s#]", [Scene("a cat", 10.0), Scene("a dog", 5.0, True)]),
        ("a cat[4s]|a dog", [Scene("a cat", 4.0), Scene("a dog")]),
        ("a [red] cat [.5s] | no. #1 [ 5.5s ]", [Scene("a [red] cat", 0.5), Scene("no. #1", 5.5)]),
        ("a cat [10s] sleeps", [Scene("a cat [10s] sleeps")]),
    ],
)
def test_scenes(text, scenes):
    assert parse_scenes(text) == tuple(scenes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "scene 1 is empty"),
        ("a cat [5s] | [5s]", "scene 2 is empty"),
        ("a cat | a dog [5s]", "scene 1 needs its length"),
        ("a cat [0s] | a dog", "scene 1 must last more than 0 seconds"),
        ("a cat [5s#] | a dog", "nothing to cut from"),
    ],
)
def test_what_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_scenes(text)


def test_scenes_begin_at_the_nearest_border_and_last_at_least_a_chunk():
    scenes = [Scene("a", 5.0), Scene("b", 0.1), Scene("c", 10.0), Scene("d")]
    # 5 s are 6 2/3 chunks, 5.1 s are 6.8: the second scene gets the seventh all the same.
    assert first_chunks(scenes, 0.75) == (0, 7, 8, 20)
    with pytest.raises(ValueError, match="needs its length"):
        first_chunks([Scene("a"), Scene("b")], 0.75)
