"""Damaged checkpoints for the converter: `python tests/fuzz_convert.py --count 1000`.

Each case ends in exit code 2 with a report and nothing written, or in a model that holds what the
bytes say, as safetensors' and torch's own readers see them. No traceback, no hang, no code run.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import pickle
import random
import re
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from checkpoints import (
    BFLOAT16,
    BY_NAME,
    FLOAT32,
    NARROW,
    SHALLOW,
    random_tensors,
    read_native,
    save,
    save_shards,
    to_torch,
    tokenizer,
)

from convert.__main__ import main
from convert.layout import from_params, to_params
from tt_jax.checkpoint import nest, read_manifest, read_stored, shapes

SECONDS = 600  # longest time for a case, on a busy machine
ONE = {
    part: dataclasses.replace(config, layers=1) if part != "vae" else config
    for part, config in SHALLOW.items()
} | {"tiny_vae": NARROW["tiny_vae"]}


class Mark:
    """A pickle that writes a file when it is loaded by something that runs it."""

    path = ""

    def __reduce__(self):
        return (open, (self.path, "w"))


# --- sources: a folder, and how it is made ------------------------------------------------------


def single(folder: Path, rng: random.Random) -> None:
    part, name = rng.choice(list(BY_NAME))
    dtype = rng.choice([FLOAT32, BFLOAT16])
    save(folder / "x.safetensors", random_tensors(BY_NAME[part, name], ONE[part], dtype))


def shards(folder: Path, rng: random.Random) -> None:
    part, name = rng.choice([("dit", "diffusers"), ("text", "transformers")])
    save_shards(folder, "model", random_tensors(BY_NAME[part, name], ONE[part]))
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))


def generator(folder: Path, rng: random.Random) -> None:
    tensors = random_tensors(BY_NAME["dit", "native"], ONE["dit"])
    wrapped = to_torch({f"model.{name}": x for name, x in tensors.items()})
    torch.save({"generator_ema": wrapped, "generator": wrapped}, folder / "x.pt")


def bare_pickle(folder: Path, rng: random.Random) -> None:
    part = rng.choice(["vae", "text"])
    tensors = to_torch(random_tensors(BY_NAME[part, "native"], ONE[part]))
    torch.save(tensors, folder / "x.pth", _use_new_zipfile_serialization=rng.random() < 0.7)
    (folder / "spiece.model").write_bytes(tokenizer())


PREFIXES = ("model", "net", "module.dit", "pipe.generator")


def wrapped(folder: Path, rng: random.Random) -> None:
    prefix = rng.choice(PREFIXES)
    tensors = {
        f"{prefix}.{x}": y for x, y in random_tensors(BY_NAME["dit", "native"], ONE["dit"]).items()
    }
    if rng.random() < 0.5:
        torch.save({"state_dict": to_torch(tensors), "step": np.int64(3)}, folder / "x.pt")
    else:
        safetensors.numpy.save_file(tensors, folder / "x.safetensors")


def extras(folder: Path, rng: random.Random) -> None:
    tensors = random_tensors(BY_NAME["text", "transformers"], ONE["text"], BFLOAT16)
    tensors["spiece_model"] = np.frombuffer(tokenizer(), np.uint8)
    tensors["freqs"] = np.ones(3)  # float64
    tensors["step"] = np.array(3)
    safetensors.numpy.save_file(tensors, folder / "x.safetensors")
    (folder / "._x.safetensors").write_bytes(rng.randbytes(90))


SOURCES = (single, shards, generator, bare_pickle, wrapped, extras)

# --- damage to the bytes of any file ------------------------------------------------------------

Damage = Callable[[Path, random.Random], None]


def pick(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(folder.iterdir()))


def flip_bits(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 4, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_header(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 2])):
        data[rng.randrange(min(len(data), 2000))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_end(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng)
    data = bytearray(path.read_bytes())
    data[-rng.randrange(1, min(len(data), 2000))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng)
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice([0, 1, 7, 8, 9, rng.randrange(len(data)), len(data) - 1])])


def append(folder: Path, rng: random.Random) -> None:
    with pick(folder, rng).open("ab") as file:
        file.write(rng.randbytes(rng.choice([1, 8, 1000])))


def overwrite(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng)
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([4, 100, 5000]))
    data[start:end] = rng.choice([b"\0", b"\xff"]) * (end - start)
    path.write_bytes(data)


def remove(folder: Path, rng: random.Random) -> None:
    pick(folder, rng).unlink()


def no_weights(folder: Path, rng: random.Random) -> None:
    text = rng.choice(
        [
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n",
            b"<!DOCTYPE html><title>Login</title>",
            b'{"error": "no"}',
            b"\x1f\x8b\x08",
            b"GGUF\x03\0\0\0",
            b"\0\x05\x16\x07" + bytes(80),
            "Zugriff verweigert \U0001f512".encode()[:-1],
        ]
    )
    pick(folder, rng).write_bytes(text)


def random_file(folder: Path, rng: random.Random) -> None:
    suffix = rng.choice([".safetensors", ".pt", ".pth", ".model", ".safetensors.index.json"])
    (folder / f"y{suffix}").write_bytes(rng.randbytes(rng.choice([0, 5, 9, 3000])))


# --- damage to the tensors ----------------------------------------------------------------------


def load(path: Path) -> dict:
    """What torch reads, a number of numpy's included."""
    numbers = [np._core.multiarray.scalar, np.dtype, np.dtypes.Int64DType]
    with torch.serialization.safe_globals(numbers):
        return torch.load(path, map_location="cpu", weights_only=True)


def tensors_of(path: Path):
    """A file's tensors as arrays, and how to write them back."""
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path), lambda x: safetensors.numpy.save_file(x, path)
    stored = load(path)
    key = next((key for key in ("generator_ema", "state_dict") if key in stored), None)
    arrays = {name: x.numpy() for name, x in (stored[key] if key else stored).items()}
    if key is None:
        return arrays, lambda tensors: torch.save(to_torch(tensors), path)
    return arrays, lambda tensors: torch.save({key: to_torch(tensors)}, path)


def change(edit: Callable[[dict, str, random.Random], None]) -> Damage:
    """Damage to one tensor of a folder's weight file."""

    def damage(folder: Path, rng: random.Random) -> None:
        weights = (".safetensors", ".pt", ".pth")
        files = [x for x in sorted(folder.iterdir()) if x.suffix in weights and x.name[0] != "."]
        path = rng.choice(files)
        tensors, write = tensors_of(path)
        edit(tensors, rng.choice(list(tensors)), rng)
        write(tensors)

    damage.__name__ = edit.__name__
    return damage


def wrong_shape(tensors, name, rng):
    x = np.atleast_1d(tensors[name])
    tensors[name] = rng.choice(
        [x[None].copy(), x.reshape(-1).copy(), x[:1].copy(), np.concatenate([x, x]), x.T.copy()]
    )


def renamed(tensors, name, rng):
    i = rng.randrange(len(name))
    other = rng.choice([name[:i] + name[i + 1 :], name.replace("0", "7"), "\x1b[2J", name + "é"])
    tensors[other] = tensors.pop(name)


def dropped(tensors, name, rng):
    del tensors[name]


def not_finite(tensors, name, rng):
    tensors[name] = x = tensors[name].copy()
    wrong = 0 if x.dtype.kind in "iu" else rng.choice([np.nan, np.inf, -np.inf])
    x.reshape(-1)[rng.randrange(x.size)] = wrong


def swapped(tensors, name, rng):
    other = rng.choice(list(tensors))
    tensors[name], tensors[other] = tensors[other], tensors[name]


def other_dtype(tensors, name, rng):
    tensors[name] = tensors[name].astype(rng.choice([np.float16, np.float64, np.int8]))


def quantised(tensors, name, rng):
    for other in list(tensors):
        tensors[other] = tensors[other].astype(np.int8)


def lora(tensors, name, rng):
    tensors[f"{name}.lora_A.weight"] = np.ones((2, 2), np.float32)


def duplicated(tensors, name, rng):
    tensors[f"model._fsdp_wrapped_module.{name}"] = tensors[name].copy()


# --- hostile files ------------------------------------------------------------------------------


def hostile_pickle(folder: Path, rng: random.Random) -> None:
    tensors = to_torch(random_tensors(BY_NAME["vae", "native"], ONE["vae"]))
    tensors["conv1.bias"] = tensors["conv1.bias"][:1].expand(1 << 40)
    stored = rng.choice(
        [
            Mark(),
            {"generator": Mark()},
            {"generator_ema": {"model.head.bias": Mark()}},
            {Mark(): 1},
            [1, 2, 3],
            {"generator": {"x": "text", 3: None}},
            {"generator_ema": {}},
            {},
            tensors,
            {"x": torch.ones(3, 2).to_sparse()},
            {"x": torch.ones(3, dtype=torch.complex64)},
        ]
    )
    path = folder / "z.pt"
    if rng.random() < 0.3:
        path.write_bytes(pickle.dumps(stored, protocol=rng.choice([2, 3, 4, 5])))
    else:
        torch.save(stored, path, _use_new_zipfile_serialization=rng.random() < 0.7)


def hostile_zip(folder: Path, rng: random.Random) -> None:
    with zipfile.ZipFile(folder / "z.pt", "w") as file:
        file.writestr("archive/data.pkl", rng.choice([pickle.dumps(Mark()), b"", b"(" * 10_000]))
        file.writestr("archive/version", "3\n")
        if rng.random() < 0.5:
            file.writestr("archive/code/x.py", "import os")
            file.writestr("archive/constants.pkl", b"\x80\x02).")


def hostile_header(folder: Path, rng: random.Random) -> None:
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = rng.choice(
        [
            "[" * 100_000,
            '{"a":' * 100_000,
            f'{{"a": {entry}, "a": {entry}}}',
            '{"a": {"dtype": "F32", "shape": [99999999999999999999], "data_offsets": [0, 4]}}',
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
            '{"a": {"dtype": "F32", "shape": [0, 9999999999], "data_offsets": [0, 0]}}',
            '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
            '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
            f'{{"a": {entry}, "b": {entry}}}',
            f'{{"__metadata__": {{"kind": 3}}, "a": {entry}}}',
            f'{{"__metadata__": [], "a": {entry}}}',
            '{"a": 3}',
            "[]",
            "{}",
            '{"a": {"dtype": "F32", "shape": [' + "1," * 70 + '1], "data_offsets": [0, 4]}}',
            '{"\\ud800": ' + entry + "}",
            '{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
            '{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + '], "data_offsets": [0, 4]}}',
        ]
    ).encode()
    length = rng.choice([len(header), len(header), len(header) + 4, 2**63, 2**64 - 1])
    content = length.to_bytes(8, "little") + header + b"\0\0\0\0"
    (folder / "z.safetensors").write_bytes(content)


def hostile_json(folder: Path, rng: random.Random) -> None:
    values = [None, -1, 0, 3, 10**9, "12", [2], {}, True, 1.5, [[]], float("nan")]
    name = rng.choice(["num_attention_heads", "num_heads", "dim_mult", "num_res_blocks"])
    name = rng.choice([name, "temperal_downsample", "latents_mean", "latents_std", "x"])
    settings = {name: rng.choice([*values, rng.choices(values, k=4)])}
    index = {"weight_map": {"a": rng.choice(["../x", "/etc/passwd", 3, None, "x.safetensors"])}}
    if rng.random() < 0.7:
        (folder / "config.json").write_text(json.dumps(settings))
    else:
        (folder / "m.safetensors.index.json").write_text(json.dumps(index))


EDITS = (
    wrong_shape, renamed, dropped, not_finite, swapped, other_dtype, duplicated, quantised, lora,
)  # fmt: skip
DAMAGES: tuple[Damage, ...] = (
    flip_bits, flip_bits, flip_bits, flip_header, flip_header, flip_end, truncate, truncate,
    append, overwrite, remove, random_file, no_weights, no_weights, *map(change, EDITS),
    hostile_pickle, hostile_zip, hostile_header, hostile_json,
)  # fmt: skip

# --- one case, and all of them ------------------------------------------------------------------


def expected(folder: Path) -> dict[str, np.ndarray]:
    """What the bytes say, in the native layout, by readers that aren't the converter's."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors" and path.name[0] != ".":
            found |= safetensors.numpy.load_file(path)
        elif path.suffix in (".pt", ".pth"):
            stored = load(path)
            for key in ("generator_ema", "generator", "state_dict"):
                stored = stored.get(key, stored)
            found |= {name: x.numpy() for name, x in stored.items()}
    return {bare(name): x for name, x in found.items()}


def bare(name: str) -> str:
    """A name without what the sources put in front of it."""
    name = name.replace("_fsdp_wrapped_module.", "")
    return next((name[len(x) + 1 :] for x in PREFIXES if name.startswith(f"{x}.")), name)


def check_model(source: Path, model: Path, back: Path) -> None:
    """Raises AssertionError unless the model holds what the source's bytes say."""
    stored, manifest = read_stored(model), read_manifest(model)
    assert main(["--to-native", str(model), str(back)]) == 0
    written = read_native(back)
    tensors = expected(source)
    for part, config in stored.parts.items():
        layout = BY_NAME[part, manifest["parts"][part]["layout"]]
        for row in layout.table(config):
            for copy in row.copies:
                tensors.setdefault(row.name, tensors.get(copy))
        known = {name for row in layout.table(config) for name in (row.name, *row.copies)}
        wanted = {re.sub(r"\d+", "#", name.replace("{i}", "0")) for name in known}
        fit = {name: x for name, x in tensors.items() if re.sub(r"\d+", "#", name) in wanted}
        params = to_params(layout.table(config), fit, nest(shapes(part, config)))
        for name, x in from_params(BY_NAME[part, "native"].table(config), params).items():
            assert written[name].tobytes() == x.tobytes() and np.isfinite(x).all(), name
    for path in source.glob("*.model"):
        assert (model / "tokenizer.model").read_bytes() == path.read_bytes()
    if "spiece_model" in tensors:
        assert (model / "tokenizer.model").read_bytes() == tensors["spiece_model"].tobytes()


def case(seed: int, folder: Path) -> str:
    """Runs one damaged input; returns what was done to it and how it ended. Raises on a failure."""
    rng = random.Random(seed)
    source, model = folder / "source", folder / "model"
    source.mkdir()
    Mark.path = str(folder / "executed")
    make, damage = rng.choice(SOURCES), rng.choice(DAMAGES)
    make(source, rng)
    damage(source, rng)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(source), str(model), "--num-heads", "2"])
        if code == 0:
            check_model(source, model, folder / "back")
    left = {path.name for path in folder.iterdir()}
    assert code in (0, 2), (code, err.getvalue())
    if code == 2:
        assert err.getvalue().startswith("convert: ") and "problem" in err.getvalue()
        assert "Traceback" not in err.getvalue()
        assert left == {"source"}, left
    else:
        assert left == {"source", "model", "back"}, left
    return f"{damage.__name__}: {'refused' if code else 'converted as the bytes say'}"


def too_long(*_):
    raise TimeoutError("a case hangs")


def fuzz(seeds: range) -> Iterator[str]:
    """Runs a case for each seed."""
    signal.signal(signal.SIGALRM, too_long)
    for seed in seeds:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        signal.alarm(SECONDS)
        try:
            yield case(seed, folder)
        except BaseException:
            print(f"seed {seed} failed in {folder}", file=sys.stderr)
            raise
        finally:
            signal.alarm(0)
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    args = parser.parse_args()
    ends = collections.Counter()
    for end in fuzz(range(args.first, args.first + args.count)):
        ends[end] += 1
        if ends.total() % 50 == 0:
            print(f"{ends.total()} cases", file=sys.stderr)
    print(*(f"{count:5}  {end}" for end, count in sorted(ends.items())), sep="\n")
    print(f"{ends.total():5}  in all, none otherwise")
