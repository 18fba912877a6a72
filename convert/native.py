"""Our format back to Wan's own names and axes, as safetensors, bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path

from convert import dit, text, tiny_vae, vae
from convert.checkpoints import CAUSAL
from convert.folder import atomic_folder, link_tree
from convert.layout import Table
from convert.problems import BadInput
from convert.tensors import NAMES, Tensor, write_safetensors
from tt_jax.checkpoint import Stored, array_dtypes, inside, load_arrays, read_stored, shapes
from tt_jax.errors import ModelError

# The file of each part, named as Wan names them, and the part's table.
FILES = {
    "dit": ("diffusion_pytorch_model.safetensors", dit.native),
    "vae": ("Wan2.1_VAE.safetensors", vae.native),
    "text": ("models_t5_umt5-xxl-enc.safetensors", text.native),
    "tiny_vae": ("taew2_1.safetensors", tiny_vae.native),
}
TOKENIZER = "google/umt5-xxl/spiece.model"


def to_native(model: Path, folder: Path) -> list[str]:
    """Writes each part of a model's folder as one safetensors file.

    Args:
        model: The model's folder.
        folder: A new folder for the files.

    Returns:
        The files' names.

    Raises:
        BadInput: The model can't be read, or `folder` exists.
        OSError: Writing failed.
    """
    if folder.exists():
        raise BadInput([f"{folder} exists: give a folder that doesn't."])
    try:
        stored = read_stored(model)
        with atomic_folder(folder) as aside:
            for part in stored.parts:
                _write(model, part, stored, aside / FILES[part][0])
            if "dit" in stored.parts:
                (aside / "config.json").write_text(json.dumps(_settings(stored), indent=2) + "\n")
            if (tokenizer := inside(model, "tokenizer.model")).exists():
                (aside / TOKENIZER).parent.mkdir(parents=True)
                link_tree(tokenizer, aside / TOKENIZER)
            return sorted(str(x.relative_to(aside)) for x in aside.rglob("*") if x.is_file())
    except ModelError as error:
        raise BadInput([str(error)]) from None


def _write(model: Path, part: str, stored: Stored, path: Path) -> None:
    config = stored.parts[part]
    table: Table = FILES[part][1](config)
    leaves, dtypes = shapes(part, config), array_dtypes(model, part)
    if wrong := {x.name for x in dtypes.values()} - {x.name for x in NAMES}:
        raise ModelError(f"{model / part} holds {min(wrong)}, which can't be written.")
    layout = {
        name: (row.source_shape(leaves[row.path].shape), dtypes[row.path])
        for row in table
        for name in row.names(leaves[row.path].shape)
    }
    write_safetensors(path, layout, _tensors(model, part, table), {"kind": stored.kind})


def _tensors(model: Path, part: str, table: Table) -> Iterator[tuple[str, Tensor]]:
    rows = {row.path: row for row in table}
    for path, array in load_arrays(model, part, rows):
        yield from rows[path].write(array).items()


def _settings(stored: Stored) -> dict[str, object]:
    """What Wan's own `config.json` says of a transformer."""
    c = stored.parts["dit"]
    return {
        "_class_name": "CausalWanModel" if stored.kind == CAUSAL else "WanModel",
        "model_type": "t2v",
        "dim": c.dim,
        "eps": 1e-6,
        "ffn_dim": c.ffn_dim,
        "freq_dim": c.freq_dim,
        "in_dim": c.channels,
        "num_heads": c.heads,
        "num_layers": c.layers,
        "out_dim": c.channels,
        "text_len": c.text_len,
    }
