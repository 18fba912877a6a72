"""Small random checkpoints with the true names, in every published layout."""

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from convert.detect import LAYOUTS, Layout
from convert.tensors import write_safetensors
from tt_jax.checkpoint import shapes
from tt_jax.models.dit import DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.models.tiny_vae import TinyVAEConfig
from tt_jax.models.tokenizer import train_sentencepiece
from tt_jax.models.vae import VAEConfig

# As many layers as published, but narrow.
NARROW = {
    "dit": DiTConfig(dim=24, ffn_dim=32, heads=2, text_dim=16),
    "dit-14b": DiTConfig(dim=32, ffn_dim=48, layers=40, heads=4, text_dim=16),
    "vae": VAEConfig(dim=4),
    "text": TextConfig(vocab=512, dim=16, attention_dim=16, ffn_dim=24, heads=2, layers=24),
    "tiny_vae": TinyVAEConfig(widths=(8, 6, 5, 4)),
}
SHALLOW = {
    "dit": dataclasses.replace(NARROW["dit"], layers=2),
    "vae": NARROW["vae"],
    "text": dataclasses.replace(NARROW["text"], layers=2),
}
BY_NAME = {(layout.part, layout.name): layout for layout in LAYOUTS}
BFLOAT16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)


def random_tensors(layout: Layout, config, dtype=FLOAT32, seed=0) -> dict[str, np.ndarray]:
    """Random tensors under the layout's names, tied copies included."""
    rng = np.random.default_rng(seed)
    leaves, tensors = shapes(layout.part, config), {}
    for row in layout.table(config):
        shape = leaves[row.path].shape
        for name in row.names(shape):
            tensors[name] = rng.normal(size=row.source_shape(shape)).astype(dtype)
        for copy in row.copies:
            tensors[copy] = tensors[row.name]
    return tensors


def save(path: Path, tensors, **metadata) -> Path:
    """A safetensors file, by our own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    write_safetensors(path, layout, tensors.items(), metadata)
    return path


def save_shards(folder: Path, stem: str, tensors, shards=3) -> Path:
    """Shards beside their index."""
    names, places = list(tensors), {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05}-of-{shards:05}.safetensors"
        save(folder / file, {name: tensors[name] for name in names[i::shards]})
        places |= dict.fromkeys(names[i::shards], file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def to_torch(tensors):
    """The same tensors as torch's."""
    import torch

    return {
        name: torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        if x.dtype == BFLOAT16
        else torch.from_numpy(x)
        for name, x in tensors.items()
    }


def tokenizer() -> bytes:
    """A sentencepiece model of at most 300 pieces."""
    return train_sentencepiece(["a red circle", "a blue square moving left"], vocab=300)


def diffusers_folder(folder: Path, dtype=FLOAT32, configs=SHALLOW) -> dict[str, dict]:
    """A folder as diffusers saves it; returns each part's tensors."""
    made = {}
    for part, layout, name in (
        ("dit", "diffusers", "transformer"),
        ("vae", "diffusers", "vae"),
        ("text", "transformers", "text_encoder"),
    ):
        made[part] = random_tensors(BY_NAME[part, layout], configs[part], dtype)
        save_shards(folder / name, "model", made[part], shards=1 if part == "vae" else 3)
    heads = {"num_attention_heads": configs["dit"].heads, "_class_name": "WanTransformer3DModel"}
    (folder / "transformer/config.json").write_text(json.dumps(heads))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/spiece.model").write_bytes(tokenizer())
    return made


def read_native(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder of safetensors, read by the safetensors package."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= safetensors.numpy.load_file(path)
    return tensors
