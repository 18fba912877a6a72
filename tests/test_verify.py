"""`tt-jax verify`: what it finds, on tiny random models."""

import json

import numpy as np
import pytest
from checkpoints import BY_NAME, SHALLOW, diffusers_folder, random_tensors, save

from convert.__main__ import main as convert
from tt_jax import verify
from tt_jax.cli.main import main


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A converted model, of which only the arrays are checked."""
    monkeypatch.setattr(verify, "TRIALS", {})
    diffusers_folder(tmp_path / "src")
    assert convert([str(tmp_path / "src"), str(tmp_path / "model")]) == 0
    return tmp_path / "model"


def wrong(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]


@pytest.mark.slow
def test_a_good_model(model, capsys, monkeypatch):
    """But for its random VAE, which may make anything of the test card."""
    monkeypatch.setattr(verify, "TRIALS", {"vae": verify.try_vae, "dit": verify.try_dit})
    monkeypatch.setattr(verify, "LEAST_PSNR", -1000.0)
    assert main(["verify", str(model)]) == 0
    out = capsys.readouterr().out
    for words in ("42 as in the manifest", "all finite", "PSNR", "mean", "bidirectional"):
        assert words in out


def test_changed_manifest(model, capsys):
    path = model / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parts"]["vae"]["arrays"]["encoder/conv_in/bias"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert main(["verify", str(model)]) == 1
    assert len(found := wrong(capsys)) == 1 and "encoder/conv_in/bias" in found[0]


def test_changed_tokenizer_and_lost_array_file(model, capsys):
    (model / "tokenizer.model").write_bytes(b"\x0a\x00")
    for path in (model / "text").rglob("d/*"):
        path.unlink()
    assert main(["verify", str(model)]) == 1
    text = wrong(capsys)
    assert len(text) == 2 and "can't be read" in text[0] and "tokenizer" in text[1]


def test_bad_input(model, tmp_path, capsys):
    assert main(["verify", str(tmp_path / "none")]) == 2
    (model / "manifest.json").write_text("{}")
    assert main(["verify", str(model)]) == 2
    (model / "config.json").write_text("[]")
    assert main(["verify", str(model)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_part_alone(tmp_path, capsys):
    tensors = random_tensors(BY_NAME["text", "native"], SHALLOW["text"])
    assert convert([str(save(tmp_path / "x", tensors)), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "model")]) == 0
    assert "dit" not in capsys.readouterr().out


def test_card():
    card = verify.draw_card()
    assert card.shape == (1, *verify.CARD, 3) and np.abs(card).max() <= 1
    assert card.std() > 0.4 and np.abs(np.diff(card, axis=1)).max() > 0.5
