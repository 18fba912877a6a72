"""Every known model: fetched from the stand-in for the hub, converted, verified, rolled out."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import environment, every_model, serve
from quick import FLAGS

from convert.known import KNOWN
from tt_jax import RollingForcing, SelfForcing, cache
from tt_jax.checkpoint import Stored, read_stored, write_stored
from tt_jax.cli.main import main as cli
from tt_jax.models.configs import RolloutConfig
from tt_jax.strategies.presets import own, preset

pytest.importorskip("huggingface_hub")
pytest.importorskip("torch")

# What each is rolled out with, without any option; None where nobody says all of it.
STRATEGIES = {
    "self-forcing": SelfForcing(),
    "self-forcing-sid": SelfForcing(),
    "rolling-forcing": RollingForcing(),
    "longlive": SelfForcing(cache=cache.LongLive(frames=12, sink=3)),
    "causal-forcing": SelfForcing(),
    "causal-forcing-framewise": SelfForcing(chunk=1),
    "causal-forcing-2step": None,
    "causal-forcing-1step": None,
    "reward-forcing": SelfForcing(cache=cache.EmaSink(frames=9, sink=3)),
    "infinite-forcing": None,
    "memflow": None,
    "krea-realtime-14b": None,
    "wave-forcing": None,
    "fastvideo-sfwan": SelfForcing(),
    "causvid": None,
    "wan2.1-1.3b": SelfForcing(),
    "wan2.1-14b": SelfForcing(),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    (folder / "files").mkdir()
    with serve(every_model(folder / "files")) as hub:
        done = subprocess.run(
            [sys.executable, Path(__file__).parents[1] / "fetch_every_model.py", folder / "models"],
            env=environment(hub.url, folder / "cache") | {"XLA_FLAGS": FLAGS},
            capture_output=True, text=True, timeout=1200,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_fetched_verified_and_rolled_out(name, reports):
    known, report = KNOWN[name], reports[name]
    assert report["code"] == 0, report["said"]
    assert report["verified"] and f"known as {known.licence}" in report["said"]
    if name == "taew2_1":
        assert report["parts"] == ["tiny_vae"]
        return
    assert report["kind"] == known.kind and report["parts"] == ["dit", "text", "vae"]
    wrapper = {"moving average": "generator_ema", "no moving average": "generator"}
    if name != "memflow":  # {"model": ...}
        assert report["dit"]["generator"] == wrapper.get(known.weights, report["dit"]["generator"])
    loras = [x["file"] for x in report["dit"].get("loras", [])]
    assert loras == [Path(x).name for x in known.published.lora]

    strategy, rollout = STRATEGIES[name], known.rollout or RolloutConfig()
    if strategy is None:
        for setting in rollout.unknown:
            assert f"--{setting}" in report["asked"]
    else:
        assert report["strategy"] == repr(strategy) and "asked" not in report
    lacks = [x for x in report["warnings"] if "was trained with" in x]
    assert len(lacks) == bool(rollout.lacks)
    least = 5 if name == "rolling-forcing" else 2
    assert (report["chunks"], report["frames"]) == (least, rollout.chunk) and report["finite"]
    assert report["decoded"] == 4 * least * rollout.chunk - 3


def test_models_prints_every_row_with_what_is_unknown(capsys):
    assert cli(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if not line.startswith(" ")}
    assert rows.keys() - {"name", "Memory"} == KNOWN.keys()
    for name, known in KNOWN.items():
        rollout = known.rollout or RolloutConfig()
        assert ("unknown" in rows[name]) == bool(rollout.unknown)
        assert ("not here" in rows[name]) == bool(rollout.lacks)
    assert "1000 937 833 625, as they stand" in rows["krea-realtime-14b"]
    assert "28.83 GB" in rows["krea-realtime-14b"] and " 2.84 GB" not in rows["self-forcing"]
    assert sum("conflict" in line for line in lines) == 3


def test_what_is_unknown_is_asked_for_and_taken():
    model = KNOWN["wave-forcing"].rollout
    assert model is not None
    with pytest.raises(ValueError, match=r"shift and window and sink .* --shift 5 --window 21"):
        own(model)
    with pytest.raises(ValueError, match="with which shift this model was trained: give it"):
        preset("self-forcing+flowmo", model, window=12, sink=0)
    assert own(model, window=12, sink=0, shift=None) == SelfForcing(
        window=12, steps=model.steps, shift=None
    )
    policy = cache.InfinityRope()
    assert own(model, cache=policy, shift=8.0).policy == policy
    # Another strategy's settings are its own.
    assert preset("rolling-forcing", model).strategy == RollingForcing(shift=5.0)


def test_a_window_takes_the_policys_place_and_a_policy_its():
    model = RolloutConfig(window=12, sink=3, cache="long-live:frames=12,sink=3")
    assert own(model) == SelfForcing(cache=cache.LongLive())
    assert own(model, window=9) == SelfForcing(window=9, sink=3)
    assert own(model, cache=cache.EmaSink()).policy == cache.EmaSink()
    assert own(model, cache=None) == own(model)
    rolling = RolloutConfig((1000, 600, 300), strategy="rolling-forcing")
    assert own(rolling) == RollingForcing((1000, 600, 300))
    assert preset("self-forcing", rolling).strategy == SelfForcing()


def test_all_of_it_is_read_as_it_was_written(tmp_path):
    rollout = RolloutConfig(cache="window", unknown=("steps", "shift"), lacks="a bank", chunk=1)
    write_stored(tmp_path, Stored(rollout=rollout))
    assert read_stored(tmp_path).rollout == rollout
    with pytest.raises(ValueError, match="no strategy 'none'"):
        dataclasses.replace(rollout, strategy="none")
    with pytest.raises(ValueError, match="'chunk' can't be unknown"):
        dataclasses.replace(rollout, unknown=("chunk",))


@pytest.mark.slow
def test_generate_asks(tiny_model, tmp_path, capsys):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    stored = read_stored(folder)
    rollout = dataclasses.replace(stored.rollout, unknown=("steps", "shift"), lacks="a bank")
    write_stored(folder, dataclasses.replace(stored, rollout=rollout))
    asked = ["generate", "a red circle", "--model", str(folder), "--out", str(tmp_path / "a.mp4")]
    assert cli(asked) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.endswith("give them, like --steps 1000,750,500,250 --shift 5.")
    assert not (tmp_path / "a.mp4").exists()
    given = ["--steps", "1000,500", "--shift", "none", "--seconds", "0.3"]
    assert cli([*asked, *given]) == 0
    assert "was trained with a bank, which isn't here" in capsys.readouterr().err
    strategy = json.loads((tmp_path / "a.json").read_text())["strategy"]["TokenTrim"]
    assert (strategy["steps"], strategy["shift"]) == ([1000, 500], None)
