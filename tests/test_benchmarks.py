"""Benchmarks that others run on machines we don't have: all of it works, at toy size."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_a_device_is_measured_part_by_part(tmp_path, monkeypatch):
    from benchmarks import device

    def fails(asked):
        raise RuntimeError("no such thing here")

    written = []

    def looks(asked):
        written.append(json.loads(out.read_text())["parts"])
        return {}

    monkeypatch.setitem(device.PARTS, "torch", fails)
    # Compiled for half a minute, and seen elsewhere: tests/models, `benchmarks decode`.
    monkeypatch.setitem(device.PARTS, "decoders", lambda asked: {})
    monkeypatch.setitem(device.PARTS, "last", looks)
    out = tmp_path / "device.json"
    device.main(["--toy", "--out", str(out)])
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == list(device.PARTS)
    assert list(written[0]) == list(device.PARTS)[:-1]  # what had ended was there already
    assert "no such thing" in parts["torch"].pop("failed")
    assert not [name for name, part in parts.items() if "failed" in part or "left out" in part]
    assert parts["tokentrim"]["triggers each chunk"]["ms"][0] > 0
    assert 0 < parts["precision"]["relative_l2"] < 0.2
    assert {"ms at chunk 2", "ms at chunk 3"} <= set(parts["length"])


def test_no_part_begins_when_time_is_over(tmp_path):
    from benchmarks import device

    out = tmp_path / "device.json"
    device.main(["--toy", "--limit", "-1", "--out", str(out)])
    parts = json.loads(out.read_text())["parts"]
    assert parts and all("left out" in part for part in parts.values())
