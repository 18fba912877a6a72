"""The converter: every published layout in and out, what it refuses, and what it leaves behind."""

import json
import sys
import zipfile

import jax
import numpy as np
import pytest
from checkpoints import (
    BFLOAT16,
    BY_NAME,
    FLOAT32,
    NARROW,
    SHALLOW,
    diffusers_folder,
    random_tensors,
    read_native,
    save,
    save_shards,
    to_torch,
    tokenizer,
)

from convert.__main__ import main
from convert.layout import from_params, to_params
from tt_jax.checkpoint import (
    load_arrays,
    load_part,
    nest,
    read_config,
    read_manifest,
    read_stored,
    shapes,
)


def run(*args) -> int:
    return main([str(arg) for arg in args])


def refused(capsys, *args) -> str:
    """Runs and returns the report, which must end in exit code 2 and nothing written."""
    target = args[1] if len(args) == 2 else args[args.index("--to") + 1]
    assert run(*[arg for arg in args if arg != "--to"]) == 2
    assert not target.exists()
    assert not list(target.parent.glob(f".{target.name}*"))
    return capsys.readouterr().err


def same(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype, name
        assert array.tobytes() == b[name].tobytes() and array.shape == b[name].shape, name


def native_of(part, layout, config, tensors):
    """The tensors in the native layout, through the tables alone."""
    model = nest(shapes(part, config))
    params = to_params(BY_NAME[part, layout].table(config), tensors, model)
    return from_params(BY_NAME[part, "native"].table(config), params)


# --- every row of the table, and back -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize(("size", "layout"), [*BY_NAME, ("dit-14b", "native")])
def test_there_and_back(size, layout, dtype, tmp_path):
    part, config = size.removesuffix("-14b"), NARROW[size]
    tensors = random_tensors(BY_NAME[part, layout], config, dtype)
    if size == "dit-14b" or layout == "transformers":
        save_shards(tmp_path / "src", "weights", tensors)
    else:
        save(tmp_path / "src/anything.safetensors", tensors)
    heads = ("--num-heads", config.heads) if part == "dit" else ()
    assert run(tmp_path / "src", tmp_path / "model", *heads) == 0
    stored = read_stored(tmp_path / "model")
    assert stored.parts == {part: config}
    assert stored.kind == "unknown"  # names and containers don't tell
    assert run("--to-native", tmp_path / "model", tmp_path / "back") == 0
    expected = native_of(part, layout, config, tensors)
    same(read_native(tmp_path / "back"), expected)
    # and what was written converts to the same again, heads and kind included
    assert run(tmp_path / "back", tmp_path / "again") == 0
    assert read_stored(tmp_path / "again") == stored


@pytest.mark.parametrize(
    ("file", "size", "layout"),
    [
        ("wan2.1_t2v_1.3b.native", "dit", "native"),
        ("wan2.1_t2v_1.3b.diffusers", "dit", "diffusers"),
        ("wan2.1_t2v_14b.native", "dit-14b", "native"),
        ("wan2.1_vae.native", "vae", "native"),
        ("wan2.1_vae.diffusers", "vae", "diffusers"),
        ("umt5_xxl_encoder.native", "text", "native"),
        ("umt5_xxl_encoder.transformers", "text", "transformers"),
    ],
)
def test_generated_names_are_the_published_ones(file, size, layout, golden):
    published = json.loads((golden.parent / f"layouts/{file}.json").read_text())
    part = size.removesuffix("-14b")
    assert random_tensors(BY_NAME[part, layout], NARROW[size]).keys() == published.keys()


def test_whole_diffusers_folder(tmp_path):
    made = diffusers_folder(tmp_path / "src")
    assert run(tmp_path / "src", tmp_path / "model") == 0
    config, kind = read_config(tmp_path / "model")
    assert (config.dit, config.vae, config.text) == tuple(SHALLOW.values())
    assert kind == "bidirectional"
    assert (tmp_path / "model/tokenizer.model").read_bytes() == tokenizer()
    manifest = read_manifest(tmp_path / "model")
    entry = manifest["parts"]["dit"]["arrays"]["blocks/ffn/fc1/kernel"]
    assert entry["axes"] == "o i -> i o" and entry["shape"] == [2, 24, 32]
    assert entry["tensors"].keys() == {f"blocks.{i}.ffn.net.0.proj.weight" for i in range(2)}
    assert len(manifest["parts"]["text"]["files"]) == 3
    x = made["vae"]["encoder.conv_in.weight"]
    vae = load_part(tmp_path / "model", "vae", config.vae, np.float32)
    np.testing.assert_array_equal(vae.encoder.conv_in.kernel[...], x.transpose(2, 3, 4, 1, 0))


def test_official_folder(tmp_path):
    torch = pytest.importorskip("torch")
    src = tmp_path / "src"
    dit = random_tensors(BY_NAME["dit", "native"], SHALLOW["dit"])
    vae = random_tensors(BY_NAME["vae", "native"], SHALLOW["vae"])
    text = random_tensors(BY_NAME["text", "native"], SHALLOW["text"], BFLOAT16)
    save(src / "diffusion_pytorch_model.safetensors", dit)
    (src / "config.json").write_text(json.dumps({"num_heads": 2, "model_type": "t2v"}))
    torch.save(to_torch(vae), src / "Wan2.1_VAE.pth")
    torch.save(to_torch(text), src / "models_t5_umt5-xxl-enc-bf16.pth")
    (src / "google/umt5-xxl").mkdir(parents=True)
    (src / "google/umt5-xxl/spiece.model").write_bytes(tokenizer())
    assert run(src, tmp_path / "model") == 0
    read_config(tmp_path / "model")
    assert run("--to-native", tmp_path / "model", tmp_path / "back") == 0
    same(read_native(tmp_path / "back"), dit | vae | text)
    assert (tmp_path / "back/google/umt5-xxl/spiece.model").read_bytes() == tokenizer()


# --- generators ---------------------------------------------------------------------------------


@pytest.fixture
def generator(tmp_path):
    """A training checkpoint with both generators, wrapped in different ways."""
    torch = pytest.importorskip("torch")
    layout = BY_NAME["dit", "native"]
    plain = random_tensors(layout, SHALLOW["dit"], seed=1)
    ema = random_tensors(layout, SHALLOW["dit"], seed=2)
    wrapped = "model._fsdp_wrapped_module."
    torch.save(
        {
            "generator": to_torch({f"model.{name}": x for name, x in plain.items()}),
            "generator_ema": to_torch({wrapped + name: x for name, x in ema.items()}),
            "step": 600,
        },
        tmp_path / "sf.pt",
    )
    return tmp_path / "sf.pt", plain, ema


@pytest.mark.parametrize(("flag", "taken"), [((), "ema"), (("--ema",), "ema"), (("--no-ema",), "")])
def test_generator(generator, flag, taken, tmp_path, capsys):
    path, plain, ema = generator
    assert run(path, tmp_path / "model", "--num-heads", 2, *flag) == 0
    name = "generator_ema" if taken else "generator"
    assert f"taken from {name}" in capsys.readouterr().out.splitlines()[0]
    assert read_stored(tmp_path / "model").kind == "causal generator"
    assert read_manifest(tmp_path / "model")["parts"]["dit"]["generator"] == name
    assert run("--to-native", tmp_path / "model", tmp_path / "back") == 0
    same(read_native(tmp_path / "back"), ema if taken else plain)


@pytest.mark.parametrize(
    ("prefix", "kind"),
    [("model.", "unknown"), ("module._orig_mod.", "unknown"), ("", "unknown"),
     ("generator.", "causal generator")],
)  # fmt: skip
def test_bare_state_dict(prefix, kind, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = random_tensors(BY_NAME["dit", "native"], SHALLOW["dit"])
    torch.save(to_torch({prefix + name: x for name, x in tensors.items()}), tmp_path / "x.pt")
    assert run(tmp_path / "x.pt", tmp_path / "model", "--num-heads", 2) == 0
    assert read_stored(tmp_path / "model").kind == kind


def test_generator_is_laid_over_a_model(generator, tmp_path):
    path, _, ema = generator
    made = diffusers_folder(tmp_path / "src")
    assert run(tmp_path / "src", tmp_path / "model") == 0
    before = read_manifest(tmp_path / "model")
    (tmp_path / "model/notes.txt").write_text("mine")
    assert run(path, tmp_path / "model", "--num-heads", 2) == 0
    config, kind = read_config(tmp_path / "model")
    assert kind == "causal generator" and config.vae == SHALLOW["vae"]
    manifest = read_manifest(tmp_path / "model")
    assert manifest["parts"]["vae"] == before["parts"]["vae"]
    assert manifest["parts"]["dit"]["files"][0]["file"] == "sf.pt"
    assert (tmp_path / "model/notes.txt").read_text() == "mine"
    assert run("--to-native", tmp_path / "model", tmp_path / "back") == 0
    vae = native_of("vae", "diffusers", SHALLOW["vae"], made["vae"])
    text = native_of("text", "transformers", SHALLOW["text"], made["text"])
    same(read_native(tmp_path / "back"), ema | vae | text)
    assert {x.name for x in tmp_path.iterdir()} == {"sf.pt", "src", "model", "back"}


def test_ema_without_a_generator(tmp_path, capsys):
    save(tmp_path / "x.safetensors", random_tensors(BY_NAME["vae", "native"], SHALLOW["vae"]))
    assert "--ema" in refused(capsys, tmp_path / "x.safetensors", "--to", tmp_path / "m", "--ema")


# --- options ------------------------------------------------------------------------------------


def test_dtype(tmp_path):
    tensors = random_tensors(BY_NAME["text", "native"], SHALLOW["text"])
    save(tmp_path / "x.safetensors", tensors)
    assert run(tmp_path / "x.safetensors", tmp_path / "model", "--dtype", "bfloat16") == 0
    arrays = dict(load_arrays(tmp_path / "model", "text", shapes("text", SHALLOW["text"])))
    expected = np.stack([tensors[f"blocks.{i}.attn.q.weight"].T for i in range(2)])
    np.testing.assert_array_equal(arrays["blocks/q/kernel"], expected.astype(BFLOAT16))


def test_component(tmp_path):
    diffusers_folder(tmp_path / "src")
    assert run(tmp_path / "src", tmp_path / "model", "--component", "vae") == 0
    assert read_stored(tmp_path / "model").parts.keys() == {"vae"}
    assert run(tmp_path / "src", tmp_path / "model", "--component", "text") == 0
    assert run(tmp_path / "src", tmp_path / "model", "--component", "dit") == 0
    read_config(tmp_path / "model")
    assert (tmp_path / "model/tokenizer.model").exists()


def test_restores_into_a_sharding(tmp_path):
    tensors = random_tensors(BY_NAME["dit", "native"], SHALLOW["dit"])
    save(tmp_path / "x.safetensors", tensors)
    assert run(tmp_path / "x.safetensors", tmp_path / "model", "--num-heads", 2) == 0
    mesh = jax.make_mesh((1,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    dit = load_part(tmp_path / "model", "dit", SHALLOW["dit"], np.float32, lambda *_: place)
    assert dit.head.kernel[...].sharding == place


# --- refusals -----------------------------------------------------------------------------------


@pytest.fixture
def vae():
    return random_tensors(BY_NAME["vae", "native"], SHALLOW["vae"])


def test_all_problems_at_once(vae, tmp_path, capsys):
    vae["conv3.weight"] = vae.pop("conv1.bias")
    vae["conv2.weight"] = np.ones((5, 5), np.float32)
    vae["decoder.head.2.bias"][1] = np.nan
    vae["encoder.head.2.bias"][:2] = np.inf
    report = refused(capsys, save(tmp_path / "x.safetensors", vae), tmp_path / "model")
    assert report.splitlines()[0] == "convert: 5 problems, nothing was written:"
    for line in (
        "missing: conv1.bias",
        f"unexpected: conv3.weight in {tmp_path}/x.safetensors",
        "misshapen: conv2.weight",
        "not finite: 1 of 3 values of decoder.head.2.bias",
        "not finite: 2 of 32 values of encoder.head.2.bias",
    ):
        assert line in report


def test_source_names_are_reported(vae, tmp_path, capsys):
    path = save(tmp_path / "x.safetensors", {f"model.{k}": v for k, v in vae.items()} | {
        "model.extra.weight": vae["conv1.bias"]
    })  # fmt: skip
    assert "unexpected: model.extra.weight" in refused(capsys, path, tmp_path / "model")


def test_duplicates_over_shards(vae, tmp_path, capsys):
    save(tmp_path / "src/a.safetensors", vae)
    save(tmp_path / "src/b.safetensors", {"conv1.bias": vae["conv1.bias"]})
    report = refused(capsys, tmp_path / "src", tmp_path / "model")
    assert "duplicate: conv1.bias" in report


def test_missing_shard_and_wrong_place(vae, tmp_path, capsys):
    src = save_shards(tmp_path / "src", "x", vae)
    (src / "x-00002-of-00003.safetensors").unlink()
    assert "x-00002-of-00003.safetensors, which isn't there" in refused(
        capsys, src, tmp_path / "model"
    )


def test_broken_files(vae, tmp_path, capsys):
    path = save(tmp_path / "x.safetensors", vae)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    cases = {
        "truncated": whole[:-1],
        "header isn't all there": whole[:100],
        "is empty": b"",
        "broken header": whole[:8] + b"x" * length + whole[8 + length :],
        "belong to no tensor": whole + b"12",
    }
    for words, content in cases.items():
        path.write_bytes(content)
        assert words in refused(capsys, path, tmp_path / "model"), words
    other = tmp_path / "other.bin"
    other.write_bytes(b"\x89PNG\r\n\x1a\n\x00")
    assert "wrong magic" in refused(capsys, other, tmp_path / "model")
    assert "isn't there" in refused(capsys, tmp_path / "none", tmp_path / "model")


def test_unprintable_names(vae, tmp_path, capsys):
    vae["\x1b[2Jgone\ud800"] = vae["conv1.bias"]
    path = save(tmp_path / "x.safetensors", vae)
    report = refused(capsys, path, tmp_path / "model")
    assert "\\x1b[2Jgone\\ud800" in report and "\x1b" not in report


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_hostile_pickle(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    mark = tmp_path / "executed"
    torch.save({"generator": Hostile(str(mark))}, tmp_path / "x.pt")
    report = refused(capsys, tmp_path / "x.pt", tmp_path / "model")
    assert "wants to run more" in report and not mark.exists()


def test_moved_member_of_a_pickle(vae, tmp_path, capsys):
    """A wrong length in front of a tensor would move its values, and torch wouldn't see it."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    torch.save(to_torch(vae), path)
    with zipfile.ZipFile(path) as archive:
        member = next(x for x in archive.infolist() if x.filename.endswith("/data/0"))
    content = bytearray(path.read_bytes())
    content[member.header_offset + 28] ^= 4
    path.write_bytes(content)
    assert "data/0 isn't where it should be" in refused(capsys, path, tmp_path / "model")


def test_torch_is_only_needed_for_pickles(vae, tmp_path, capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save(to_torch(vae), tmp_path / "x.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs torch" in refused(capsys, tmp_path / "x.pth", tmp_path / "model")
    assert run(save(tmp_path / "x.safetensors", vae), tmp_path / "model") == 0


def test_dtype_too_small(vae, tmp_path, capsys):
    vae["conv1.bias"][0] = 1e20
    path = save(tmp_path / "x.safetensors", vae)
    report = refused(capsys, path, "--to", tmp_path / "model", "--dtype", "float16")
    assert "too large for float16: 1 of 32 values of conv1.bias" in report


def test_heads_that_cannot_be_told(tmp_path, capsys):
    path = save(
        tmp_path / "x.safetensors", random_tensors(BY_NAME["dit", "native"], SHALLOW["dit"])
    )
    assert "--num-heads" in refused(capsys, path, tmp_path / "model")


def test_parts_that_do_not_fit(tmp_path, capsys):
    made = diffusers_folder(tmp_path / "src")
    other = random_tensors(BY_NAME["vae", "native"], SHALLOW["vae"])
    assert run(tmp_path / "src", tmp_path / "model", "--component", "dit") == 0
    wide = {**SHALLOW["text"].__dict__, "dim": 32}
    text = random_tensors(BY_NAME["text", "native"], type(SHALLOW["text"])(**wide))
    save(tmp_path / "t.safetensors", text)
    assert run(tmp_path / "t.safetensors", tmp_path / "model") == 2
    assert "reads text of width 16, the encoder's has 32" in capsys.readouterr().err
    assert run(save(tmp_path / "v.safetensors", other), tmp_path / "model") == 0
    assert made.keys() == {"dit", "vae", "text"}


def test_a_folder_of_something_else_is_left_alone(vae, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/thesis.tex").write_text("years of work")
    assert run(save(tmp_path / "x.safetensors", vae), tmp_path / "model") == 2
    assert [x.name for x in (tmp_path / "model").iterdir()] == ["thesis.tex"]


def test_flip_that_stays_finite_shows_in_the_hash(vae, tmp_path):
    path = save(tmp_path / "x.safetensors", vae)
    assert run(path, tmp_path / "a") == 0
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80  # the last value's sign
    path.write_bytes(content)
    assert run(path, tmp_path / "b") == 0
    a, b = (read_manifest(tmp_path / x)["parts"]["vae"] for x in "ab")
    assert a["files"][0]["sha256"] != b["files"][0]["sha256"]
    assert sum(a["arrays"][path] != b["arrays"][path] for path in a["arrays"]) == 1
