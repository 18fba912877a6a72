"""What people find in the place of a plain checkpoint: wrapped, marked, packed, or no weights."""

import dataclasses
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import BFLOAT16, BY_NAME, SHALLOW, diffusers_folder, random_tensors, save, to_torch
from checkpoints import tokenizer as sentencepiece

from convert.__main__ import main
from tt_jax.checkpoint import load_arrays, read_manifest, read_stored, shapes

CAUSAL = "causal generator"
NATIVE = {part: BY_NAME[part, "native"] for part in SHALLOW}


def run(*args) -> int:
    return main([str(arg) for arg in args])


def refused(capsys, source, target, *options) -> list[str]:
    """The problems of a conversion that wrote nothing."""
    assert run(source, target, *options) == 2
    assert not target.exists()
    title, *lines = capsys.readouterr().err.splitlines()
    assert title == f"convert: {len(lines)} problem{'s' * (len(lines) > 1)}, nothing was written:"
    return lines


def arrays_of(model, part="dit"):
    return dict(load_arrays(model, part, shapes(part, SHALLOW[part])))


def assert_holds(model, tensors):
    """The transformer's query projections tell which tensors were taken."""
    expected = np.stack([tensors[f"blocks.{i}.self_attn.q.weight"].T for i in range(2)])
    np.testing.assert_array_equal(arrays_of(model)["blocks/self_attn/q/kernel"], expected)


def dit(seed=0):
    return random_tensors(NATIVE["dit"], SHALLOW["dit"], seed=seed)


def behind(prefix, tensors):
    return {f"{prefix}.{name}" if prefix else name: x for name, x in tensors.items()}


HEADS = ("--num-heads", 2)


# --- what a transformer says that it is ---------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "pipeline", "kind"),
    [
        ("CausalWanTransformer3DModel", None, CAUSAL),
        ("CausalWanModel", None, CAUSAL),
        ("WanTransformer3DModel", None, "bidirectional"),
        ("WanModel", None, "bidirectional"),
        ("WanTransformer3DModel", "WanPipeline", "bidirectional"),
        ("WanTransformer3DModel", "WanCausalDMDPipeline", CAUSAL),
        ("SkyReelsV2Transformer3DModel", None, "unknown"),
        (None, None, "unknown"),
        (["WanModel"], None, "bidirectional"),
        (7, None, "unknown"),
    ],
)
def test_class_names_are_believed(config, pipeline, kind, tmp_path):
    folder = diffusers_folder(tmp_path / "src") and tmp_path / "src/transformer"
    (folder / "config.json").write_text(
        json.dumps({"num_attention_heads": 2} | ({"_class_name": config} if config else {}))
    )
    if pipeline:
        index = {"_class_name": pipeline, "transformer": ["diffusers", config]}
        (tmp_path / "src/model_index.json").write_text(json.dumps(index))
    assert run(folder, tmp_path / "model") == 0
    assert read_stored(tmp_path / "model").kind == kind


def test_plain_tensors_are_called_nothing_and_the_way_on(tmp_path, capsys):
    path = save(tmp_path / "krea.safetensors", dit())
    assert run(path, tmp_path / "a", *HEADS) == 0
    assert "kind: unknown; say --kind causal" in capsys.readouterr().out
    for name, kind in (("causal", CAUSAL), ("bidirectional", "bidirectional")):
        assert run(path, tmp_path / name, *HEADS, "--kind", name) == 0
        assert read_stored(tmp_path / name).kind == kind
        # and it stays with what is written back
        assert run("--to-native", tmp_path / name, tmp_path / f"{name}-back") == 0
        assert run(tmp_path / f"{name}-back", tmp_path / f"{name}-again") == 0
        assert read_stored(tmp_path / f"{name}-again").kind == kind
        settings = json.loads((tmp_path / f"{name}-back/config.json").read_text())
        assert ("Causal" in settings["_class_name"]) == (name == "causal")


def test_asked_kind_wins_and_needs_a_transformer(tmp_path, capsys):
    save(tmp_path / "src/x.safetensors", dit())
    (tmp_path / "src/config.json").write_text('{"_class_name": "WanModel", "num_heads": 2}')
    assert run(tmp_path / "src", tmp_path / "model", "--kind", "causal") == 0
    assert read_stored(tmp_path / "model").kind == CAUSAL
    path = save(tmp_path / "v.safetensors", random_tensors(NATIVE["vae"], SHALLOW["vae"]))
    assert "--kind" in refused(capsys, path, tmp_path / "v", "--kind", "causal")[0]
    # another part, converted into the folder later, doesn't change it
    assert run(path, tmp_path / "model") == 0
    assert read_stored(tmp_path / "model").kind == CAUSAL


# --- wrappers and prefixes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "net", "generator", "transformer", "dit", "student", "ema_model", "module", "model",
        "_fsdp_wrapped_module", "_orig_mod", "model.diffusion_model", "model.model",
        "module._orig_mod.model._fsdp_wrapped_module", "pipe.denoiser_7",
    ],
)  # fmt: skip
def test_one_prefix_of_all_names(prefix, tmp_path, capsys):
    tensors = dit()
    path = save(tmp_path / "x.safetensors", behind(prefix, tensors))
    assert run(path, tmp_path / "model", *HEADS) == 0
    assert_holds(tmp_path / "model", tensors)
    said = ".".join(word for word in prefix.split(".") if not word.startswith("_"))
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith(f", without the prefix {said}" if said else "native layout")
    recorded = read_manifest(tmp_path / "model")["parts"]["dit"]["arrays"]
    assert f"{prefix}.head.head.bias" in recorded["head/bias"]["tensors"]


@pytest.mark.parametrize("part", ["vae", "text"])
@pytest.mark.parametrize("layout", ["native", "other"])
def test_prefixes_of_the_other_parts(part, layout, tmp_path):
    layout = {"vae": "diffusers", "text": "transformers"}[part] if layout == "other" else layout
    tensors = random_tensors(BY_NAME[part, layout], SHALLOW[part])
    save(tmp_path / "plain.safetensors", tensors)
    save(tmp_path / "wrapped.safetensors", behind("first_stage_model.encoder_x", tensors))
    made = []
    for name in ("plain", "wrapped"):
        assert run(tmp_path / f"{name}.safetensors", tmp_path / name) == 0
        made.append(arrays_of(tmp_path / name, part))
    assert all(np.array_equal(made[0][path], made[1][path]) for path in made[0])


def test_a_name_without_the_prefix_is_unexpected(tmp_path, capsys):
    tensors = behind("net", dit())
    tensors["head.head.bias"] = tensors.pop("net.head.head.bias")
    tensors["net.pose.weight"] = tensors["pose.weight"] = tensors["head.head.bias"]
    path = save(tmp_path / "x.safetensors", tensors)
    assert refused(capsys, path, tmp_path / "model", *HEADS) == [
        "  missing: head.head.bias (x.safetensors)",
        f"  unexpected: head.head.bias in {path}",
        f"  unexpected: net.pose.weight in {path}",
        f"  unexpected: pose.weight in {path}",
    ]


KEYS = [
    ("state_dict",), ("model",), ("module",), ("ema",), ("model_ema",), ("params",),
    ("state_dict", "model"), ("checkpoint", "ema", "module"),
]  # fmt: skip


@pytest.mark.parametrize("keys", KEYS, ids=".".join)
@pytest.mark.parametrize("prefix", ["", "net"])
def test_wrapping_dicts(keys, prefix, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    tensors = dit()
    stored = to_torch(behind(prefix, tensors))
    for key in reversed(keys):
        stored = {key: stored, "epoch": 3, "args": {"lr": 1e-4}, "betas": [0.9, 0.99]}
    torch.save(stored, tmp_path / "x.pt")
    assert run(tmp_path / "x.pt", tmp_path / "model", *HEADS) == 0
    assert_holds(tmp_path / "model", tensors)
    assert f"taken from {'.'.join(keys)}" in capsys.readouterr().out
    assert read_stored(tmp_path / "model").kind == "unknown"


def test_an_optimizer_beside_the_model(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = dit()
    moments = {"state": {i: {"exp_avg": torch.ones(3), "step": torch.tensor(2)} for i in range(99)}}
    stored = {"model": to_torch(tensors), "optimizer": moments, "step": torch.tensor(9)}
    stored["self"] = stored  # a pickle can do that
    torch.save(stored, tmp_path / "x.pt")
    assert run(tmp_path / "x.pt", tmp_path / "model", *HEADS) == 0
    assert_holds(tmp_path / "model", tensors)


CHOICES = [  # the keys of what is in the file, and what is taken by default, --ema and --no-ema
    ({"generator": 1, "generator_ema": 2, "critic": 3}, (2, 2, 1)),
    ({"student": 1, "ema": 2, "teacher": 3, "teacher_ema": 4}, (2, 2, 1)),
    ({"model": 1, "model_ema": 2}, (2, 2, 1)),
    ({"generator": 1, "critic": 3}, (1, "no moving average", 1)),
    ({"ema": 2, "critic": 3}, (2, 2, "no model but its moving average")),
    ({"generator": 1, "pretrained": 2}, (1, "no moving average", 1)),
    ({"high": 1, "low": 2}, ("several models", "no moving average", "several models")),
]


@pytest.mark.parametrize("flat", [False, True], ids=["dicts", "prefixes"])
@pytest.mark.parametrize(("keys", "taken"), CHOICES, ids=lambda x: ".".join(map(str, x)))
def test_several_models_in_a_file(keys, taken, flat, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    models = {key: dit(seed) for key, seed in keys.items()}
    stored = {key: to_torch(x) for key, x in models.items()}
    if flat:
        stored = {
            "state_dict": {f"{a}.{b}": x for a, one in stored.items() for b, x in one.items()}
        }
    torch.save(stored, tmp_path / "x.pt")
    for i, (flag, seed) in enumerate(zip(((), ("--ema",), ("--no-ema",)), taken, strict=True)):
        model = tmp_path / f"model{i}"
        if isinstance(seed, str):
            (line,) = refused(capsys, tmp_path / "x.pt", model, *HEADS, *flag)
            assert seed in line
        else:
            assert run(tmp_path / "x.pt", model, *HEADS, *flag) == 0
            assert_holds(model, dit(seed))
            assert read_stored(model).kind == (CAUSAL if "generator" in keys else "unknown")


def test_torch_swa_and_ema_modules(tmp_path, capsys):
    """`AveragedModel` and ema_pytorch put counters beside the models."""
    plain, average = dit(1), dit(2)
    save(tmp_path / "a.safetensors", behind("module", average) | {"n_averaged": np.ones(1, "f4")})
    both = behind("online_model.model", plain) | behind("ema_model.model", average)
    both |= {"initted": np.ones((), "f4"), "step": np.full((), 5, "f4")}
    save(tmp_path / "b.safetensors", both)
    for name in "ab":
        assert run(tmp_path / f"{name}.safetensors", tmp_path / name, *HEADS) == 0
        assert_holds(tmp_path / name, average)
    assert "left out initted, step" in capsys.readouterr().out
    assert run(tmp_path / "b.safetensors", tmp_path / "c", *HEADS, "--no-ema") == 0
    assert_holds(tmp_path / "c", plain)


def test_numbers_of_numpy_in_a_pickle(tmp_path):
    torch = pytest.importorskip("torch")
    import argparse
    import pathlib

    tensors = dit()
    stored = {
        "generator": to_torch(tensors),
        "step": np.int64(600),
        "loss": np.float32(0.1),
        "curve": np.arange(4.0),
        "args": argparse.Namespace(
            out=pathlib.PurePosixPath("/x").parent and "x", lr=np.float64(1)
        ),
        "out": pathlib.Path("/tmp/x"),
    }
    torch.save(stored, tmp_path / "new.pt")
    torch.save(stored, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("new", "old"):
        assert run(tmp_path / f"{name}.pt", tmp_path / name, *HEADS) == 0
        assert_holds(tmp_path / name, tensors)


# --- tensors beside the model's -----------------------------------------------------------------


def test_tokenizer_inside_the_text_encoder(tmp_path, capsys):
    tensors = random_tensors(BY_NAME["text", "transformers"], SHALLOW["text"], BFLOAT16)
    tensors["spiece_model"] = np.frombuffer(sentencepiece(), np.uint8)
    tensors["scaled_fp8"] = np.zeros(0, ml_dtypes.float8_e4m3fn)
    path = tmp_path / "umt5_xxl.safetensors"
    safetensors.numpy.save_file(tensors, path)
    assert run(path, tmp_path / "model") == 0
    out = capsys.readouterr().out
    assert "text: left out scaled_fp8" in out
    assert f"tokenizer: {300} pieces, found in {path}" in out
    assert (tmp_path / "model/tokenizer.model").read_bytes() == sentencepiece()
    from tt_jax.verify import check_tokenizer

    recorded = read_manifest(tmp_path / "model")["tokenizer"]
    assert recorded["file"] == path.name
    assert check_tokenizer(tmp_path / "model", read_stored(tmp_path / "model"), recorded).passed
    # the same one in a file of its own is no contradiction, another is
    (tmp_path / "spiece.model").write_bytes(sentencepiece())
    assert run(path, tmp_path / "spiece.model", tmp_path / "again") == 0
    from tt_jax.models.tokenizer import train_sentencepiece

    (tmp_path / "spiece.model").write_bytes(train_sentencepiece(["something else"], vocab=290))
    assert run(path, tmp_path / "spiece.model", tmp_path / "third") == 2
    assert "several tokenizers, which differ" in capsys.readouterr().err


def test_damaged_tokenizer_inside(tmp_path, capsys):
    tensors = random_tensors(BY_NAME["text", "transformers"], SHALLOW["text"])
    tensors["spiece_model"] = np.frombuffer(sentencepiece()[:-7], np.uint8)
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    (line,) = refused(capsys, tmp_path / "x.safetensors", tmp_path / "model")
    assert "isn't a sentencepiece model, or is damaged" in line


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model"])
def test_known_extras_are_left_out_aloud(prefix, tmp_path, capsys):
    tensors = dit()
    extras = {
        "freqs": np.ones((16, 4), np.complex64),
        "blocks.0.rope.freqs_cis": np.ones(3, np.float64),
        "blocks.1.rope.freqs_cis": np.ones(3, np.float64),
        "scaled_fp8": np.zeros(0, ml_dtypes.float8_e4m3fn),
        "global_step": np.array([600]),
        "num_updates": np.array(6),
    }
    save_any(tmp_path / "x.safetensors", behind(prefix, tensors | extras))
    assert run(tmp_path / "x.safetensors", tmp_path / "model", *HEADS) == 0
    assert_holds(tmp_path / "model", tensors)
    dot = f"{prefix}." if prefix else ""
    names = ("blocks.#.rope.freqs_cis", "freqs", "global_step", "num_updates", "scaled_fp8")
    said = ", ".join(dot + name for name in names)
    assert f"dit: left out {said}, which no model needs\n" in capsys.readouterr().out


def test_extras_in_a_pickle(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    extras = {
        "freqs": torch.ones(16, 4, dtype=torch.complex128),
        "step": torch.tensor(7),
        "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn),
    }
    torch.save(to_torch(dit()) | extras, tmp_path / "x.pt")
    assert run(tmp_path / "x.pt", tmp_path / "model", *HEADS) == 0
    assert "left out freqs, scaled_fp8, step, which" in capsys.readouterr().out


@pytest.mark.parametrize(
    "extra",
    {
        "img_emb.proj.1.weight": np.ones((2, 2), np.float32),
        "steps_embedding.weight": np.ones((2, 2), np.float32),
        "step": np.ones(5, np.float32),  # a counter is one number
        "spiece_model": np.ones(5, np.uint8),  # in a transformer
        "blocks.0.self_attn.freqs.weight": np.ones(5, np.float32),
        "blocks.0.empty": np.zeros(0, np.float32),
    }.items(),
    ids=lambda item: item[0],
)
def test_unknown_extras_are_named_and_refused(extra, tmp_path, capsys):
    save_any(tmp_path / "x.safetensors", dit() | dict([extra]))
    (line,) = refused(capsys, tmp_path / "x.safetensors", tmp_path / "model", *HEADS)
    assert f"unexpected: {extra[0]}" in line


def save_any(path, tensors):
    """A safetensors file with dtypes that no model has."""
    names = {np.dtype(np.complex64): "C64", np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3"}
    names |= {np.dtype("f4"): "F32", np.dtype("f8"): "F64", np.dtype("i8"): "I64"}
    names |= {np.dtype("u1"): "U8"}
    header, data = {}, b""
    for name, x in tensors.items():
        place = [len(data), len(data) + x.nbytes]
        header[name] = {"dtype": names[x.dtype], "shape": x.shape, "data_offsets": place}
        data += x.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# --- what can't be converted, in one line -------------------------------------------------------


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8])
def test_quantised_weights_take_one_line(dtype, tmp_path, capsys):
    tensors = {
        name: x.astype(dtype) if x.ndim == 2 and name.startswith("blocks") else x
        for name, x in dit().items()
    }
    scales = {f"{name}_scale": np.ones((), np.float32) for name in tensors if "attn.q.w" in name}
    safetensors.numpy.save_file(tensors | scales, tmp_path / "x.safetensors")
    (line,) = refused(capsys, tmp_path / "x.safetensors", tmp_path / "model", *HEADS)
    assert f"20 of 69 tensors are stored as {np.dtype(dtype).name}; only 32 and 16 bit" in line
    assert "isn't quantised" in line


def test_other_quantised_files_take_one_line(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    weights = {name: x.to(torch.float8_e4m3fn) for name, x in to_torch(dit()).items()}
    torch.save({"generator": weights}, tmp_path / "fp8.pt")
    (line,) = refused(capsys, tmp_path / "fp8.pt", tmp_path / "model", *HEADS)
    assert "69 of 69 tensors are stored as float8_e4m3fn" in line
    weights = {name: x.to_sparse() for name, x in to_torch(dit()).items()}
    torch.save(weights, tmp_path / "q.pt")
    (line,) = refused(capsys, tmp_path / "q.pt", tmp_path / "model", *HEADS)
    assert "69 tensors" in line and "can't be converted" in line
    entry = '{"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}, '
    header = (entry + '"b": {"dtype": "F4", "shape": [4], "data_offsets": [2, 4]}}').encode()
    path = tmp_path / "f4.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    (line,) = refused(capsys, path, tmp_path / "model")
    assert "2 of 2 tensors are stored as F4" in line
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    (line,) = refused(capsys, tmp_path / "x.gguf", tmp_path / "model")
    assert "is a GGUF file" in line


LORAS = [
    "diffusion_model.blocks.{i}.self_attn.q.lora_{a}.weight",
    "base_model.model.blocks.{i}.self_attn.q.lora_{a}.default.weight",
    "blocks.{i}.attn1.to_q.lora.{a}.weight",
    "lora_unet_blocks_{i}_self_attn_q.lora_{a}.weight",
    "transformer.blocks.{i}.attn1.to_q.lokr_{a}",
]


@pytest.mark.parametrize("name", LORAS)
def test_lora_is_called_lora(name, tmp_path, capsys):
    x = np.ones((4, 4), np.float32)
    tensors = {name.format(i=i, a=a): x for i in range(30) for a in ("A", "down", "w1")}
    save(tmp_path / "lora.safetensors", tensors)
    (line,) = refused(capsys, tmp_path / "lora.safetensors", tmp_path / "model", *HEADS)
    assert "is a LoRA" in line and "add it: --lora" in line


def test_lora_beside_a_generator_is_not_dropped(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    lora = {"base_model.model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 2)}
    torch.save({"generator": to_torch(dit()), "generator_lora": lora}, tmp_path / "x.pt")
    (line,) = refused(capsys, tmp_path / "x.pt", tmp_path / "model", *HEADS)
    assert "is a LoRA, or holds one" in line


# --- files that are no weights ------------------------------------------------------------------

POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 11361920418\n"
).encode()
PAGE = (
    b"\n <!DOCTYPE html>\n<html><head><title>Sign in &#8211; Hub</title></head><body></body></html>"
)
APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02" + bytes(90)
NO_WEIGHTS = {
    "pointer": (POINTER, ("Git LFS pointer", "11.36 GB", "git lfs pull")),
    "page": (PAGE, ("web page ('Sign in", "login", "download it again")),
    "xml": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        ("web page", "login"),
    ),
    "text": (b"Entry not found", ("text that begins 'Entry not found'", "download it again")),
    "json": (b'{"error": "gated"}', ('text that begins \'{"error"', "download it again")),
    "empty": (b"", ("is empty", "download it again")),
    "apple": (APPLE, ("macOS", "without ._")),
    "gzip": (b"\x1f\x8b\x08\x00rest", ("gzip archive", "unpack")),
    "tar": (b"x.pt".ljust(257, b"\0") + b"ustar\x0000", ("tar archive", "unpack")),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".model", ""])
@pytest.mark.parametrize(("content", "words"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_no_weights_at_all(content, words, suffix, tmp_path, capsys):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    (line,) = refused(capsys, path, tmp_path / "model")
    assert line.startswith(f"  {path} is ") and all(word in line for word in words), line


def test_pointers_of_all_parts_are_reported_at_once(tmp_path, capsys):
    """A repository cloned without LFS."""
    diffusers_folder(tmp_path / "src")
    weights = [
        x for x in (tmp_path / "src").rglob("*") if x.name.endswith((".safetensors", ".model"))
    ]
    for path in weights:
        path.write_bytes(POINTER)
    lines = refused(capsys, tmp_path / "src", tmp_path / "model")
    assert len(lines) == len(weights) and all("git lfs pull" in line for line in lines)


def test_settings_that_are_a_page(tmp_path, capsys):
    save(tmp_path / "src/x.safetensors", dit())
    (tmp_path / "src/config.json").write_bytes(PAGE)
    (line,) = refused(capsys, tmp_path / "src", tmp_path / "model")
    assert "config.json is a web page ('Sign in" in line


def test_zip_of_a_checkpoint(tmp_path, capsys):
    path = save(tmp_path / "x.safetensors", dit())
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(path, "x.safetensors")
    (line,) = refused(capsys, tmp_path / "x.zip", tmp_path / "model")
    assert "zip archive: unpack it" in line


# --- what systems and programs leave about ------------------------------------------------------


def test_hidden_files_are_left_out(tmp_path):
    diffusers_folder(tmp_path / "src")
    (tmp_path / "src/._model_index.json").write_bytes(APPLE)
    for folder in ("transformer", "vae", "text_encoder", "tokenizer"):
        for path in list((tmp_path / "src" / folder).iterdir()):
            path.with_name(f"._{path.name}").write_bytes(APPLE)
        (tmp_path / "src" / folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (tmp_path / "src" / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    for folder in (".cache/huggingface/download", "__MACOSX/vae", ".git/lfs", ".ipynb_checkpoints"):
        (tmp_path / "src" / folder).mkdir(parents=True)
        (tmp_path / "src" / folder / "x.safetensors").write_bytes(b"half a fi")
        (tmp_path / "src" / folder / "x.safetensors.index.json").write_bytes(b"{")
        (tmp_path / "src" / folder / "spiece.model").write_bytes(b"half")
    # the destination was looked at in a file manager
    (tmp_path / "model").mkdir()
    (tmp_path / "model/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert run(tmp_path / "src", tmp_path / "model") == 0
    assert read_stored(tmp_path / "model").parts.keys() == {"dit", "vae", "text"}
    assert (tmp_path / "model/tokenizer.model").exists()


def test_a_hidden_folder_that_is_given_is_meant(tmp_path):
    save(tmp_path / ".cache/hub/x.safetensors", dit())
    assert run(tmp_path / ".cache/hub", tmp_path / "model", *HEADS) == 0


# --- where it goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["taken", "taken/model", "taken/a/b"])
def test_destination_is_a_file(target, tmp_path, capsys):
    path = save(tmp_path / "x.safetensors", dit())
    (tmp_path / "taken").write_text("mine")
    assert run(path, tmp_path / target, *HEADS) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[1:] == [
        f"  {tmp_path}/taken is a file: give the name of a folder for the model."
    ]
    assert (tmp_path / "taken").read_text() == "mine"


# --- sizes that the tensors don't tell ----------------------------------------------------------


@pytest.mark.parametrize(("dim", "heads"), [(24, None), (192, None), (128, 1), (256, 2)])
def test_heads_are_guessed_for_widths_of_whole_heads_only(dim, heads, tmp_path, capsys):
    config = dataclasses.replace(SHALLOW["dit"], dim=dim, layers=1)
    path = save(tmp_path / "x.safetensors", random_tensors(NATIVE["dit"], config))
    if heads:
        assert run(path, tmp_path / "model") == 0
        assert read_stored(tmp_path / "model").parts["dit"].heads == heads
        return
    (line,) = refused(capsys, path, tmp_path / "model")
    assert f"width of {dim}" in line and "--num-heads" in line
    assert run(path, tmp_path / "model", "--num-heads", "3") == 0
    assert read_stored(tmp_path / "model").parts["dit"].heads == 3


def test_text_len(tmp_path, capsys):
    config = dataclasses.replace(SHALLOW["text"], text_len=226)
    save(tmp_path / "src/x.safetensors", dit())
    save(tmp_path / "src/text/t.safetensors", random_tensors(NATIVE["text"], SHALLOW["text"]))
    assert run(tmp_path / "src", tmp_path / "model", *HEADS, "--text-len", 226) == 0
    stored = read_stored(tmp_path / "model")
    assert stored.parts["text"] == config and stored.parts["dit"].text_len == 226
    assert run("--to-native", tmp_path / "model", tmp_path / "back") == 0
    assert run(tmp_path / "back", tmp_path / "again") == 0
    assert read_stored(tmp_path / "again").parts == stored.parts
    # one part of another length doesn't fit the other
    assert run(tmp_path / "src/text", tmp_path / "model") == 2
    assert "reads texts of 226, the encoder makes 512" in capsys.readouterr().err
    for wrong in ("0", "-3", "99999999"):
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path / "src", tmp_path / "m", "--text-len", wrong)
