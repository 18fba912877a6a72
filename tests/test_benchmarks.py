"""Benchmarks that others run on machines we don't have: all of it works, at toy size."""

import json

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
    """What is printed, and that any choice of blocks is rounded as a loaded model is."""
    from benchmarks import quantize

    quantize.main(["--toy", "--chunks", "3", "--every", "3"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    judged = {row[1]: row[2:] for row in rows if row[0] == "toy"}
    worst = {name: float(cells[0].split()[0]) for name, cells in judged.items()}
    assert list(worst) == ["int8, first and last block not", "int8, all blocks"]
    assert all(20 < value < 90 for value in worst.values())
    parts = {row[0]: [float(cell) for cell in row[1:]] for row in rows if "block" in row[0]}
    assert list(parts) == ["block 1 of 3", "block 2 of 3", "block 3 of 3", "all blocks"]
    assert np.isfinite(list(parts.values())).all()

    case = quantize.random("toy", quantize.TOY, 2, 1)
    got, wanted = (
        quantize.Made.of(quantize.free(case, dit))
        for dit in (quantize.some(case, list(quantize.GROUPS), [1]), quantize.shipped(case))
    )
    assert got.psnr(wanted).min() > 60


def test_a_second_start_compiles_nothing(capsys):
    from benchmarks import start

    start.main(["--toy"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "|" in line]
    read = {row[0].strip(): row for row in rows if "warm" in row[1]}
    assert list(read) == ["tt_jax", "safetensors"]
    compiled = {row[0].strip(): int(row[4]) for row in rows[-2:]}
    assert compiled["first"] > 5 and compiled["second"] == 0
