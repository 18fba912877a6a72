"""Policies by their names, and what they refuse."""

import pytest

from tt_jax import SelfForcing
from tt_jax.cache import (
    NAMES,
    DeepForcing,
    EmaSink,
    FadeMem,
    MemRope,
    RelaxForcing,
    TetherCache,
    Window,
    parse,
)
from tt_jax.cache.named import name_of


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    assert parse(name) == NAMES[name]()  # the published sizes
    small = parse(name, window=9)
    assert name_of(small) == name
    assert SelfForcing(cache=small).slots >= 3


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("window:sink=3,relative=true", Window(21, 3, relative=True)),
        ("mem-rope:summary=adaptive,short=0.2", MemRope(summary="adaptive", short=0.2)),
        ("ema-sink:past_weight=0.3", EmaSink(past_weight=0.3)),
        ("deep-forcing", DeepForcing(21, 10, 16, 4)),
    ],
)
def test_settings(text, policy):
    assert parse(text) == policy


def test_small_windows():
    assert parse("deep-forcing", 9) == DeepForcing(frames=9, sink=1, budget=6)
    assert parse("tether-cache", 9) == TetherCache(9, 1)
    assert parse("fade-mem", 9) == FadeMem(9, 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("windows", "there is no cache policy 'windows'"),
        ("window:size=3", "window has no setting 'size': give one of"),
        ("window:sink", "window's sink is a whole number, not ''"),
        ("window:relative=yes", "window's relative is true or false"),
        ("ema-sink:alpha=x", "ema-sink's alpha is a number, not 'x'"),
        ("window:past_weight=0", "past_weight must be above 0"),
        ("window:base_spread=1", "base_spread must be from 0 to below 1"),
    ],
)
def test_what_a_name_refuses(text, says):
    with pytest.raises(ValueError, match=says):
        parse(text)


@pytest.mark.parametrize(
    "policy",
    [
        Window(3),
        Window(9, -1),
        MemRope(8, 3),
        MemRope(summary="median"),
        EmaSink(sink=0),
        EmaSink(alpha=1.5),
        RelaxForcing(archive=6),
        DeepForcing(budget=14),
        DeepForcing(recent=7),
        TetherCache(9, 3),
        FadeMem(bank=4),
        FadeMem(bank=19),
    ],
    ids=repr,
)
def test_settings_without_room_are_refused(policy):
    with pytest.raises(ValueError, match=r"not|needs|must"):
        SelfForcing(cache=policy)
