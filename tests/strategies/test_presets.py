"""The presets differ from each other in what the paper says, and in nothing else."""

import dataclasses

import pytest

from tt_jax import FlowMo, RollingForcing, SelfForcing, TokenTrim
from tt_jax.models.configs import RolloutConfig
from tt_jax.strategies import presets
from tt_jax.strategies.presets import preset


def differences(one, other):
    """Fields in which two presets of one host differ, with the second's values."""
    found = {}
    for a, b in zip(preset(one), preset(other), strict=True):
        assert type(a) is type(b)
        for field in dataclasses.fields(a):
            if getattr(a, field.name) != getattr(b, field.name):
                found[field.name] = getattr(b, field.name)
    return found


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("{}", "{}+flowmo", {"guidance": FlowMo("all")}),
        ("{}", "{}+tokentrim", {"guidance": FlowMo("first"), "retries": 1}),
        ("{}", "{}+tokentrim-no-flowmo", {"retries": 1}),
        ("{}+tokentrim", "{}+tokentrim-no-flowmo", {"guidance": None}),
        ("{}+tokentrim", "{}+tokentrim-p05", {"p": 0.05}),
        ("{}+tokentrim", "{}+tokentrim-p20", {"p": 0.2}),
    ],
)
@pytest.mark.parametrize("host", ["rolling-forcing", "self-forcing"])
def test_differences(host, one, other, expected):
    if host == "self-forcing" and other.endswith(("05", "20")):
        with pytest.raises(ValueError, match="no preset"):
            preset(other.format(host))
    else:
        assert differences(one.format(host), other.format(host)) == expected


def test_hosts_are_the_plain_strategies():
    assert preset("rolling-forcing") == (RollingForcing(), TokenTrim.off())
    assert preset("self-forcing") == (SelfForcing(), TokenTrim.off())
    assert preset("self-forcing+tokentrim").trim == TokenTrim()
    assert len(presets.NAMES) == 10


def test_levels_and_window_are_the_models():
    model = RolloutConfig(steps=(1000, 500), shift=1.0, window=9)
    own = preset("self-forcing+flowmo", model).strategy
    assert (own.steps, own.shift, own.window) == ((1000, 500), 1.0, 9)
    assert preset("rolling-forcing", model).strategy == RollingForcing(shift=1.0)
