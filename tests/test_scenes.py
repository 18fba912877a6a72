"""Which prompt a video has from which second on: in a line, in a file, in Python."""

import pytest

from tt_jax.scenes import Change, Scene, first_chunks, parse_scenes, read_file, read_script


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


@pytest.mark.parametrize(
    ("prompt", "script", "seconds"),
    [
        ("a cat", [Change(0, "a cat")], None),
        ("a cat | a dog", [Change(0, "a cat | a dog")], None),  # no length: a prompt with a bar
        ("a cat [10s] | a dog", [Change(0, "a cat"), Change(10, "a dog")], None),
        ("a cat [10s] | a dog [5.5s#]", [Change(0, "a cat"), Change(10, "a dog", "cut")], 15.5),
        ("a cat [10s]", [Change(0, "a cat")], 10.0),
        (["a cat", "a dog"], [Change(0, ["a cat", "a dog"])], None),  # a batch
        ([(0, "a cat"), (10, "a dog")], [Change(0, "a cat"), Change(10, "a dog")], None),
        ([[0, "a"], [2.5, "b", "none"]], [Change(0, "a"), Change(2.5, "b", "none")], None),
    ],
    ids=repr,
)
def test_a_prompt_or_a_script(prompt, script, seconds):
    assert read_script(prompt) == (tuple(script), seconds)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ([(0, "a"), (10, "b"), (5, "c")], "times must increase: 5 comes after 10"),
        ([(0, "a"), (0, "b")], "times must increase: 0 comes after 0"),
        ([(2, "a")], "begins at 0 seconds, not at 2"),
        ([(0, "a"), (float("nan"), "b")], "must be finite, not nan"),
        ([(0, "a"), ("10", "b")], "times are seconds, not '10'"),
        ([(0, "a"), "b"], "pairs like \\(10, 'a dog'\\), not 'b'"),
        ([(0,)], "pairs like"),
    ],
    ids=repr,
)
def test_a_script_that_is_refused(script, says):
    with pytest.raises(ValueError, match=says):
        read_script(script)


def test_a_file(tmp_path):
    path = tmp_path / "script.txt"
    path.write_text("0 a cat\n\n  7.5# 2 dogs [sic] | both\n.1e1 x\n")
    with pytest.raises(
        ValueError, match=r"line 4 of .*script.txt must be SECONDS PROMPT, .* '.1e1"
    ):
        read_file(path)
    path.write_text("0 a cat\n\n  7.5# 2 dogs [sic] | both\n")
    assert read_file(path) == (Change(0, "a cat"), Change(7.5, "2 dogs [sic] | both", "cut"))
    for text, says in (
        ("", "is empty"),
        ("0# a", "nothing to cut from"),
        ("0 a\n0 b", "script.txt: a script's times must increase"),
        ("a cat", "line 1 of"),
        ("0", "line 1 of"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            read_file(path)
    path.write_bytes(b"0 caf\xe9")
    with pytest.raises(ValueError, match="isn't a text file in UTF-8"):
        read_file(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_file(tmp_path / "none")


def test_scenes_begin_at_the_nearest_border_and_last_at_least_a_chunk():
    borders = [0, *(0.5625 + 0.75 * i for i in range(20))]  # 12 frames a chunk, 9 in the first
    script = [Change(t, "x") for t in (0, 5.0, 5.1, 14)]
    # 5 s lie nearer to chunk 7, at 5.0625; the third scene gets the next one all the same.
    assert first_chunks(tuple(script), borders) == (0, 7, 8, 19)
    for late in (14.6, 15, 1e9):
        with pytest.raises(ValueError, match="nothing is left of the video for the prompt at"):
            first_chunks((script[0], Change(late, "x")), borders)
    with pytest.raises(ValueError, match="nothing is left"):
        first_chunks((*script, Change(14.1, "x")), borders)
