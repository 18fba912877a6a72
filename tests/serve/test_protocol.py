"""Messages: what is one, and that nothing else gets through."""

import json
import random

import pytest
from stub import START, unpack

from tt_jax.serve.protocol import (
    LONGEST_PROMPT,
    Branch,
    Message,
    ProtocolError,
    Shown,
    Start,
    Steer,
    Stop,
    pack,
    parse,
)

STEER = {"type": "steer", "prompt": "a dog", "trim": False, "lam": 0, "switch": "flush"}
GOOD = [
    START,
    STEER,
    {"type": "branch", "seed": 2**64 - 1},
    {"type": "stop"},
    {"type": "shown", "frames": 12},
]


def test_messages():
    start, *others = (parse(json.dumps(message)) for message in GOOD)
    assert start == Start("a cat", True, 2.0, "none", 0, 0.1, "window", False)
    assert others == [Steer("a dog", False, 0.0, "flush"), Branch(2**64 - 1), Stop(), Shown(12)]
    longest = "\N{GRINNING FACE}" * LONGEST_PROMPT
    sent = json.dumps(START | {"prompt": longest}, ensure_ascii=False)  # as browsers do
    assert parse(sent).prompt == longest


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("", "must be JSON"),
        ("[" * 5000, "must be JSON"),
        ("1" * 5000, "must be JSON"),
        ("x" * 20_000, "at most 16384 bytes"),
        ("ä" * 10_000, "at most 16384 bytes"),
        ("[]", "an object with a type"),
        ('{"type": ["start"]}', "an object with a type"),
        ('{"type": "exec"}', "one of start, steer"),
        ('{"type": "stop", "now": 1}', "stop needs nothing else, exactly"),
        ('{"type": "shown"}', "shown needs frames"),
        ('{"type": "shown", "frames": true}', "whole number"),
        ('{"type": "shown", "frames": -1}', "whole number from 0"),
        ('{"type": "branch", "seed": 18446744073709551616}', "whole number from 0"),
        (json.dumps(STEER | {"trim": 1}), "trim is true or false"),
        (json.dumps(STEER | {"lam": float("nan")}), "must be JSON"),
        (json.dumps(STEER | {"lam": 7}).replace("7", "1e999"), "lam is a number"),
        (json.dumps(STEER | {"prompt": " "}), "prompt is empty"),
        (json.dumps(STEER | {"prompt": "\ud800"}), "isn't Unicode"),
        (json.dumps(STEER | {"switch": ["flush"]}), "switch is a name"),
        (json.dumps(START | {"prompt": "a" * 2001}), "at most 2000 characters"),
        (json.dumps(START | {"cache": 3}), "cache is a name"),
    ],
)
def test_what_is_no_message_is_said_in_a_sentence(message, said):
    with pytest.raises(ProtocolError, match=said):
        parse(message)


def damaged(count: int) -> list[str]:
    """Texts that are nearly messages: letters and values changed at random."""
    rng = random.Random(0)
    odd = [
        None,
        True,
        -1,
        2**70,
        1.5,
        "",
        "\0",
        "\ud800",
        "a" * 3000,
        [],
        {},
        [[]],
        {"a": 1},
        1e308,
    ]
    texts = []
    while len(texts) < count:
        message = dict(rng.choice(GOOD))
        if rng.random() < 0.5:
            message[rng.choice([*message, "more", "__class__"])] = rng.choice(odd)
            text = json.dumps(message)
        else:
            letters = list(json.dumps(message))
            for _ in range(rng.randint(1, 5)):
                at = rng.randrange(len(letters))
                letters[at] = rng.choice(
                    ["", "\x00", "{", '"', "9", "\\", "\U0001f600", letters[at] * 2]
                )
            text = "".join(letters)
        texts.append(text)
    return texts


def test_damaged_messages_are_refused_or_messages():
    refused = 0
    for text in damaged(500):
        try:
            assert isinstance(parse(text), Message)
        except ProtocolError as error:
            refused += 1
            assert str(error).endswith(".") and len(str(error)) < 200
    assert refused > 300


def test_chunks_keep_their_parts_and_floats_are_aligned():
    for length in range(8):
        message = pack({"prompt": "ä" * length}, [b"1234", b"", b"567"])
        header, parts = unpack(message)
        assert header["prompt"] == "ä" * length and parts == [b"1234", b"", b"567"]
        assert message.index(b"1234567") % 4 == 0
