"""A model's folder: what is said of one that is damaged, lacks parts, or isn't one."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from models import PROMPT, TINY

import tt_jax
from tt_jax.checkpoint import arrays, find, load_part, read_config, read_stored, save_part
from tt_jax.cli.main import main
from tt_jax.errors import ModelError
from tt_jax.prompts import encode_prompts


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


# --- not a model's folder -----------------------------------------------------------------------

WAN = {"_class_name": "WanModel", "_diffusers_version": "0.30", "dim": 1536, "model_type": "t2v"}
FOREIGN = {
    "official": {"config.json": json.dumps(WAN), "diffusion_pytorch_model.safetensors": "x"},
    "diffusers": {"model_index.json": '{"_class_name": "WanPipeline"}', "vae/config.json": "{}"},
    "component": {"config.json": '{"_class_name": "AutoencoderKLWan"}'},
    "transformers": {"config.json": '{"architectures": ["UMT5EncoderModel"]}'},
    "pickles": {"self_forcing_dmd.pt": "x"},
    "weights": {"krea.safetensors": "x", "config.json": "{}"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_unconverted_checkpoint(files, tmp_path, capsys):
    for name, content in files.items():
        (tmp_path / "wan" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "wan" / name).write_text(content)
    said = (
        f"{tmp_path}/wan is an unconverted checkpoint: make a model of it with `python -m convert"
    )
    with pytest.raises(ModelError, match=re.escape(said)):
        tt_jax.load(tmp_path / "wan")
    assert main(["generate", PROMPT, "--model", str(tmp_path / "wan"), "--seconds", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tt-jax: {said} {tmp_path}/wan")


def test_weights_given_as_a_model(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"x\.safetensors is a file: .*python -m convert"):
        tt_jax.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "self-forcing", "nothing"])
def test_unknown_names_mention_fetch(name, capsys):
    assert main(["generate", PROMPT, "--model", name, "--seconds", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no model '{name}'" in line and "tt-jax fetch NAME FOLDER" in line


def test_empty_folder_holds_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        tt_jax.load(tmp_path)


# --- damaged ------------------------------------------------------------------------------------


def change(model, path, value):
    """Sets an entry of config.json."""
    stored = json.loads((model / "config.json").read_text())
    *parents, last = path.split(".")
    node = stored
    for key in parents:
        node = node[key]
    node[last] = value
    (model / "config.json").write_text(json.dumps(stored))


SIZES = [0, -3, 1.5, "48", None, [48], True, 1 << 40, {}]


@pytest.mark.parametrize("value", SIZES, ids=repr)
@pytest.mark.parametrize(
    "name", ["dit.dim", "text.layers", "vae.latent_channels", "rollout.window"]
)
def test_sizes_that_can_not_be(name, value, model):
    change(model, name, value)
    with pytest.raises(ModelError, match=rf"config\.json is damaged \({name} can't be"):
        read_stored(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vae.dim_mult", 3),
        ("vae.dim_mult", [1, 0, 1]),
        ("vae.dim_mult", [1, 2]),
        ("vae.mean", [0.0, float("nan"), 0.0, 0.0]),
        ("vae.temporal_downsample", [1, 0]),
        ("size", [32]),
        ("size", "32x32"),
        ("kind", "causal"),
        ("kind", 3),
        ("rollout.steps", []),
        ("rollout.steps", [1000, "500"]),
        ("rollout.shift", "5"),
        ("rollout.sink", -1),
        ("rollout.chunk", 0),
        ("rollout.version", 99),
        ("rollout.kind", 1),
        ("rollout", 3),
        ("dit", 7),
        ("dit", []),
        ("dit.width", 3),
    ],
    ids=repr,
)
def test_settings_that_can_not_be(name, value, model):
    change(model, name, value)
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        read_stored(model)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000])
def test_config_that_is_no_json(content, model):
    (model / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        tt_jax.load(model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dit.dim", 96), ("dit.layers", 3), ("dit.heads", 7), ("dit.ffn_dim", 65), ("text.heads", 3),
     ("vae.dim", 8), ("text.vocab", 513), ("vae.res_blocks", 2), ("text.buckets", 64)],
)  # fmt: skip
def test_sizes_of_another_model(name, value, model):
    change(model, name, value)
    part = name.split(".")[0]
    with pytest.raises(ModelError, match=rf"model/({part} |config\.json is damaged)"):
        tt_jax.load(model)


@pytest.mark.parametrize("part", ["dit", "vae", "text"])
@pytest.mark.parametrize("damage", ["half", "empty", "missing", "flipped"])
def test_damaged_arrays(part, damage, model):
    files = sorted((model / part).rglob("*"), key=lambda x: x.stat().st_size if x.is_file() else 0)
    largest = files[-1]
    content = bytearray(largest.read_bytes())
    if damage == "missing":
        largest.unlink()
    elif damage == "flipped":
        content[len(content) // 2 :] = bytes(255 - x for x in content[len(content) // 2 :])
        largest.write_bytes(content)
    else:
        largest.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
    with pytest.raises(ModelError, match=f"model/{part} "):
        tt_jax.load(model)


@pytest.mark.parametrize("content", [b"", b"no tokenizer", b"\x0a\x0b\x0a\x05<unk>", None])
def test_damaged_tokenizer(content, model, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = model / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    for call in (lambda: tt_jax.load(model), lambda: encode_prompts(model, PROMPT)):
        with pytest.raises(ModelError, match=r"tokenizer\.model is no tokenizer, or is damaged"):
            call()


# --- a part of a model --------------------------------------------------------------------------


def test_a_transformer_alone(model):
    for part in ("vae", "text"):
        shutil.rmtree(model / part)
        change(model, part, None)
    (model / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match="holds no 'vae'"):
        tt_jax.load(model)
    pipe = tt_jax.load(model, text=False)
    assert pipe.vae is None and pipe.text is None and pipe.tokenizer is None
    assert pipe.config.dit == TINY.dit and pipe.config.rollout == TINY.rollout
    assert pipe.config.vae.latent_channels == TINY.dit.channels
    text = np.zeros((1, TINY.dit.text_len, TINY.dit.text_dim), np.float32)
    out = tt_jax.rollout(
        pipe.dit, text, jax.random.key(0), chunks=1, grid=(8, 8), strategy=pipe.strategy()
    )
    assert np.isfinite(out.latents).all()
    for call in (lambda: pipe.stream(text, seconds=1), lambda: pipe.generate(text, seconds=1)):
        with pytest.raises(ValueError, match=r"has no VAE.*tt_jax\.rollout"):
            call()


@pytest.mark.slow
def test_without_a_text_encoder(model, tiny_model):
    """A transformer and a VAE make the same video from embeddings."""
    text = tt_jax.load(tiny_model).encode_prompt(PROMPT)
    whole = tt_jax.load(tiny_model, text=False).generate(text, seconds=0.5)
    shutil.rmtree(model / "text")
    change(model, "text", None)
    (model / "tokenizer.model").unlink()
    made = tt_jax.load(model, text=False).generate(text, seconds=0.5)
    np.testing.assert_array_equal(made.frames, whole.frames)
    with pytest.raises(ModelError, match="holds no 'text'"):
        tt_jax.load(model)


def test_without_a_transformer_there_is_no_model(model):
    change(model, "dit", None)
    with pytest.raises(ModelError, match="holds no 'dit'"):
        tt_jax.load(model, text=False)


def test_what_is_there_is_read_as_before(tiny_model):
    assert read_config(tiny_model) == (TINY, "causal generator")
    assert find("shapes").is_dir() and read_config(find("shapes"))[1] == "causal generator"
    wrong = dataclasses.replace(TINY.dit, layers=5)
    with pytest.raises(ModelError, match=r"doesn't fit its config\.json: blocks/"):
        load_part(tiny_model, "dit", wrong, np.float32)


def test_arrays_are_written_as_they_are(tmp_path):
    """What is compressed is read in three times the time."""
    save_part(tmp_path, "dit", {"kernel": np.zeros((512, 512), np.float32)})
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) > 512 * 512 * 4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU has memory of its own")
def test_a_cpu_keeps_what_was_read(tiny_model, monkeypatch):
    """Arrays are handed over, not copied."""
    read, real = {}, arrays._read

    def noted(path, name, *others):
        array = real(path, name, *others)
        read[name] = array.ctypes.data
        return array

    monkeypatch.setattr(arrays, "_read", noted)
    state = nnx.state(load_part(tiny_model, "dit", TINY.dit, np.float32))
    held = dict(arrays.flatten(nnx.to_pure_dict(state)))
    assert {name: array.unsafe_buffer_pointer() for name, array in held.items()} == read
