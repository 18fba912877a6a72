"""Benchmarks that others run on machines we don't have: all of it works, at toy size."""

import json

import jax.numpy as jnp
import numpy as np
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


def test_int8_is_judged_by_the_worst_chunk(capsys):
    from benchmarks import quantize

    quantize.main(["--toy", "--chunks", "3", "--every", "3"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    (worst,) = (float(row[2].split()[0]) for row in rows if row[0] == "toy")
    assert 20 < worst < 90
    parts = {row[0]: [float(cell) for cell in row[1:]] for row in rows if "block" in row[0]}
    assert list(parts) == ["block 1 of 3", "block 2 of 3", "block 3 of 3", "all blocks"]
    for *groups, together in parts.values():
        assert 20 < together < max(groups) < 120
    assert parts["all blocks"][-1] < max(row[-1] for row in parts.values())


def test_any_choice_of_blocks_is_rounded_as_a_loaded_model_is():
    from benchmarks import quantize

    case = quantize.random("toy", quantize.TOY, 1, 1)
    some, shipped = quantize.some(case, ["feed-forward"], [1]), quantize.shipped(case)
    for name in ("fc1", "fc2"):
        got, wanted = (getattr(dit.blocks.ffn, name) for dit in (some, shipped))
        np.testing.assert_array_equal(got.kernel[1].astype(np.int8), wanted.kernel[0])
        np.testing.assert_array_equal(got.scale[1], wanted.scale[0])
        assert (np.asarray(got.scale[jnp.array([0, 2])]) == 1).all()


def test_a_second_start_compiles_nothing(capsys):
    from benchmarks import start

    start.main(["--toy"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    read = {row[0].strip(): row for row in rows if "warm" in row[1]}
    assert list(read) == ["tt_jax", "safetensors"]
    compiled = {row[0].strip(): int(row[4]) for row in rows[-2:]}
    assert compiled["first"] > 5 and compiled["second"] == 0


def test_training_is_measured_stage_by_stage(capsys):
    from benchmarks import training

    few = ["--pictures", "2", "--openings", "2", "--clips", "2", "--repeats", "1"]
    training.main(["--toy", *few])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    stages = {row[0].strip(): [float(cell.split()[0]) for cell in row[1:]] for row in rows[2:]}
    assert list(stages) == ["pictures", "first chunks", "later chunks"]
    for rate, share, operations in stages.values():
        assert rate > 0 and 0 <= share < 100 and operations > 0
