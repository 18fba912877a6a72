"""LoRAs merged while a transformer is converted: every published naming, exactness, refusals."""

import json

import numpy as np
import pytest
from checkpoints import BFLOAT16, BY_NAME, SHALLOW, random_tensors, save, to_torch
from parity import distance

from convert.__main__ import main
from convert.layout import from_params
from tt_jax.checkpoint import load_arrays, nest, read_manifest, shapes

DIT = SHALLOW["dit"]  # two layers of width 24
RANK = 3
# In both layouts: a weight of each shape.
TARGETS = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.1.cross_attn.o": "blocks.1.attn2.to_out.0",
    "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj",
    "blocks.0.ffn.2": "blocks.0.ffn.net.2",
}
NATIVE = BY_NAME["dit", "native"]


def halves(seed=0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B for each native target."""
    rng = np.random.default_rng(seed)
    tensors = random_tensors(NATIVE, DIT)
    made = {}
    for name in TARGETS:
        out, width = tensors[f"{name}.weight"].shape
        pair = rng.normal(size=(RANK, width)), rng.normal(size=(out, RANK))
        made[name] = tuple(x.astype(np.float32) for x in pair)
    return made


def peft(pairs):
    return {
        f"base_model.model.{name}.lora_{letter}.weight": x
        for name, pair in pairs.items()
        for letter, x in zip("AB", pair, strict=True)
    }


def kijai(pairs, alpha=6.0):
    made = {}
    for name, (down, up) in pairs.items():
        made |= {
            f"diffusion_model.{name}.lora_down.weight": down,
            f"diffusion_model.{name}.lora_up.weight": up,
            f"diffusion_model.{name}.alpha": np.array(alpha, np.float32),
        }
    return made


def diffusers(pairs):
    return {
        f"transformer.{TARGETS[name]}.lora_{letter}.weight": x
        for name, pair in pairs.items()
        for letter, x in zip("AB", pair, strict=True)
    }


def wanted(*added):
    """The native tensors with (pairs, factor) added, in float64."""
    tensors = {name: x.astype(np.float64) for name, x in random_tensors(NATIVE, DIT).items()}
    for pairs, factor in added:
        for name, (down, up) in pairs.items():
            tensors[f"{name}.weight"] += factor * (up.astype(np.float64) @ down.astype(np.float64))
    return tensors


def made(folder):
    """The native tensors of a model's folder."""
    params = nest(dict(load_arrays(folder, "dit", shapes("dit", DIT))))
    return from_params(NATIVE.table(DIT), params)


def run(*args):
    return main([*map(str, args), "--num-heads", str(DIT.heads)])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save(tmp_path_factory.mktemp("base") / "base.safetensors", random_tensors(NATIVE, DIT))


def test_every_naming_alone_and_together(base, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    first, second, third = halves(1), halves(2), halves(3)
    pickled = {"generator_lora": to_torch(peft(first)), "critic_lora": to_torch(peft(third))}
    torch.save({**pickled, "step": 7}, tmp_path / "a.pt")
    save(tmp_path / "b.safetensors", kijai(second))
    save(tmp_path / "c.safetensors", diffusers(third))
    for file, pairs, factor in [
        ("a.pt", first, 1),  # no alpha: as if it were the rank
        ("b.safetensors:0.5", second, 0.5 * 6 / RANK),
        ("c.safetensors:-2", third, -2),
    ]:
        folder = tmp_path / file[0]
        assert run(base, folder, "--lora", tmp_path / file) == 0
        exact = wanted((pairs, factor))
        for name, array in made(folder).items():
            assert distance(array, exact[name]) <= 3e-7, name
    assert "c.safetensors added -2 times to 4 weights, of rank 3" in capsys.readouterr().out

    loras = [x for file in ("a.pt", "b.safetensors:0.5") for x in ("--lora", tmp_path / file)]
    assert run(base, tmp_path / "two", *loras) == 0
    exact = wanted((first, 1), (second, 1))
    assert all(distance(x, exact[name]) <= 3e-7 for name, x in made(tmp_path / "two").items())
    recorded = read_manifest(tmp_path / "two")["parts"]["dit"]["loras"]
    assert [(x["file"], x["scale"]) for x in recorded] == [("a.pt", 1), ("b.safetensors", 0.5)]


def test_made_in_float32_then_cast(tmp_path):
    tensors = random_tensors(BY_NAME["dit", "diffusers"], DIT, BFLOAT16)
    save(tmp_path / "base.safetensors", tensors)
    pairs = halves(1)
    save(tmp_path / "l.safetensors", peft(pairs))
    save(tmp_path / "zero.safetensors", peft({k: (a, 0 * b) for k, (a, b) in pairs.items()}))
    arrays = {}
    for dtype in ("bfloat16", "float32"):
        lora = ("--lora", tmp_path / "l.safetensors", "--dtype", dtype)
        assert run(tmp_path / "base.safetensors", tmp_path / dtype, *lora) == 0
        arrays[dtype] = made(tmp_path / dtype)
    for name, x in arrays["bfloat16"].items():
        np.testing.assert_array_equal(x, arrays["float32"][name].astype(BFLOAT16))
    # Nothing added is nothing changed.
    lora = ("--lora", tmp_path / "zero.safetensors")
    assert run(tmp_path / "base.safetensors", tmp_path / "zero", *lora) == 0
    assert run(tmp_path / "base.safetensors", tmp_path / "plain") == 0
    plain = made(tmp_path / "plain")
    assert all(np.array_equal(x, plain[name]) for name, x in made(tmp_path / "zero").items())


def test_settings_beside_it(base, tmp_path):
    pairs = halves(1)
    file = save(tmp_path / "l/adapter_model.safetensors", peft(pairs))
    settings = {"r": RANK, "lora_alpha": 12, "use_rslora": True, "use_dora": False}
    (tmp_path / "l/adapter_config.json").write_text(json.dumps(settings))
    assert run(base, tmp_path / "model", "--lora", file) == 0
    exact = wanted((pairs, 12 / RANK**0.5))
    assert all(distance(x, exact[name]) <= 3e-7 for name, x in made(tmp_path / "model").items())


@pytest.mark.parity
def test_against_peft(base, tmp_path, parity_record):
    library, torch = pytest.importorskip("peft"), pytest.importorskip("torch")

    model, tensors = torch.nn.Module(), random_tensors(NATIVE, DIT)
    for name in TARGETS:
        *parents, last = name.split(".")
        module = model
        for word in parents:
            if not hasattr(module, word):
                module.add_module(word, torch.nn.Module())
            module = getattr(module, word)
        out, width = tensors[f"{name}.weight"].shape
        module.add_module(last, torch.nn.Linear(width, out, bias=False))
    model.load_state_dict(
        to_torch({f"{name}.weight": tensors[f"{name}.weight"] for name in TARGETS})
    )
    config = library.LoraConfig(r=RANK, lora_alpha=5, target_modules=list(TARGETS))
    adapted = library.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "lora")
    file = tmp_path / "lora/adapter_model.safetensors"
    assert run(base, tmp_path / "model", "--lora", file) == 0
    ours = made(tmp_path / "model")
    merged = adapted.merge_and_unload().state_dict()
    assert len(merged) == len(TARGETS)
    worst = max(distance(ours[name], weight.numpy()) for name, weight in merged.items())
    parity_record("LoRA merged", "peft", f"{len(TARGETS)} weights, rank {RANK}", worst, 1e-6)


BAD = {
    "another rank": (
        lambda x: x | {"base_model.model.blocks.0.ffn.2.lora_B.weight": np.ones((24, 4), "f4")},
        "blocks.0.ffn.2 has two ranks, 3 in A and 4 in B",
    ),
    "another model's": (
        lambda x: x | {"base_model.model.blocks.0.ffn.2.lora_B.weight": np.ones((25, 3), "f4")},
        "is for a weight of [25, 32], and the model's is [24, 32]",
    ),
    "a layer that isn't there": (
        lambda x: {name.replace("blocks.1", "blocks.2"): y for name, y in x.items()},
        "the model has no base_model.model.blocks.2.cross_attn.o to be added to",
    ),
    "a target that no model has": (
        lambda x: x | {f"base_model.model.blocks.0.extra.lora_{i}.weight": np.ones((3, 3), "f4")
                       for i in "AB"},
        "the model has no base_model.model.blocks.0.extra to be added to",
    ),
    "half": (
        lambda x: {name: y for name, y in x.items() if "blocks.0.ffn.2.lora_A" not in name},
        "blocks.0.ffn.2 lacks its half A (down)",
    ),
    "leftover": (
        lambda x: x | {"base_model.model.blocks.0.ffn.2.diff_b": np.ones(24, "f4")},
        "blocks.0.ffn.2.diff_b is no part of a LoRA that can be merged",
    ),
    "no number": (
        lambda x: {name: y * np.float32(np.nan) for name, y in x.items()},
        "blocks.0.self_attn.q.lora_A.weight isn't finite",
    ),
    "too large": (
        lambda x: {name: y * np.float32(1e25) for name, y in x.items()},
        "blocks.0.self_attn.q.weight isn't finite with the LoRA added to it",
    ),
    "no LoRA": (
        lambda x: {"blocks.0.ffn.2.weight": np.ones((24, 32), "f4")},
        "is no LoRA: its tensors are blocks.0.ffn.2.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_refused_and_nothing_left(case, base, tmp_path, capsys):
    spoil, message = BAD[case]
    save(tmp_path / "l.safetensors", spoil(peft(halves())))
    assert run(base, tmp_path / "model", "--lora", tmp_path / "l.safetensors") == 2
    error = capsys.readouterr().err
    assert message in error and "nothing was written" in error
    assert [path.name for path in tmp_path.iterdir()] == ["l.safetensors"]


def test_refused_requests(base, tmp_path, capsys):
    vae = save(
        tmp_path / "vae.safetensors", random_tensors(BY_NAME["vae", "native"], SHALLOW["vae"])
    )
    lora = save(tmp_path / "l.safetensors", peft(halves()))
    assert run(vae, tmp_path / "model", "--lora", lora) == 2
    assert "adds to a transformer, and there is none" in capsys.readouterr().err
    assert run(base, tmp_path / "model", "--lora", tmp_path / "none.safetensors:2") == 2
    assert "none.safetensors isn't there" in capsys.readouterr().err
    assert run(lora, tmp_path / "model") == 2
    assert f"add it: --lora {lora}" in capsys.readouterr().err
    for wrong in (f"{lora}:much", f"{lora}:inf"):
        with pytest.raises(SystemExit, match="2"):
            run(base, tmp_path / "model", "--lora", wrong)
        assert "--lora" in capsys.readouterr().err
    beside = tmp_path / "adapter_config.json"
    beside.write_text(json.dumps({"lora_alpha": 3, "use_dora": True}))
    assert run(base, tmp_path / "model", "--lora", lora) == 2
    assert (
        "adapter_config.json asks for what can't be merged: use_dora=true"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "model").exists()
