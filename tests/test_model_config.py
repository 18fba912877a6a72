"""`config.json`: what it says of the rollout, and what a folder without that takes."""

import json

import pytest

from tt_jax.checkpoint import Stored, read_stored, write_stored
from tt_jax.errors import ModelError
from tt_jax.models.configs import RolloutConfig


def test_the_rollout_is_read_as_it_was_written(tmp_path):
    rollout = RolloutConfig(steps=(1000, 500), shift=None, chunk=4, window=9, sink=3)
    write_stored(tmp_path, Stored(rollout=rollout))
    assert read_stored(tmp_path).rollout == rollout
    assert json.loads((tmp_path / "config.json").read_text())["rollout"]["version"] == 1


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, RolloutConfig((1000, 750, 500, 250), 5.0, 3, 21, 0)),
        ({"window": 9}, RolloutConfig(window=9)),
        ({"rollout": {"version": 1, "shift": 1.0}}, RolloutConfig(shift=1.0)),
    ],
)
def test_what_a_folder_lacks_takes_self_forcings_values(tmp_path, entry, expected):
    nothing = dict.fromkeys(("dit", "vae", "text"))
    text = json.dumps({"kind": "unknown", **nothing, "size": [64, 64], **entry})
    (tmp_path / "config.json").write_text(text)
    assert read_stored(tmp_path).rollout == expected


def test_an_unknown_version_is_refused(tmp_path):
    write_stored(tmp_path, Stored())
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ModelError, match="version 2"):
        read_stored(tmp_path)
