"""A model's folder: `config.json`, a `manifest.json`, the tokenizer, and orbax arrays per part.

    FOLDER/config.json      sizes and kind, readable
    FOLDER/manifest.json    where each array came from (written by `convert`)
    FOLDER/tokenizer.model  sentencepiece
    FOLDER/{dit,vae,text}/  arrays; a folder may hold only some of the parts
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import DTypeLike
from orbax.checkpoint import v1 as ocp

from tt_jax.models.dit import DiT, DiTConfig
from tt_jax.models.presets import ModelConfig
from tt_jax.models.text import TextConfig, TextEncoder
from tt_jax.models.vae import VAE, VAEConfig

PARTS: dict[str, tuple[type, type]] = {
    "dit": (DiTConfig, DiT),
    "vae": (VAEConfig, VAE),
    "text": (TextConfig, TextEncoder),
}
# What a transformer was trained to do: only a causal generator can be rolled out.
KINDS = ("bidirectional", "causal generator", "unknown")


class ModelError(ValueError):
    """A model's folder that can't be used; the message says why and what to do."""


def write_config(folder: Path, config: ModelConfig, kind: str) -> None:
    """Writes `config.json`."""
    text = json.dumps({"kind": kind, **dataclasses.asdict(config)}, indent=2)
    (folder / "config.json").write_text(text + "\n")


def read_config(folder: Path) -> tuple[ModelConfig, str]:
    """The sizes of the model in `folder`, and its kind. Raises ModelError."""
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text())
        parts = {}
        for name, (kind, _) in PARTS.items():
            fields = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in stored[name].items()
            }
            parts[name] = kind(**fields)
        size = tuple(stored["size"])
        return ModelConfig(**parts, size=size, window=stored["window"]), stored["kind"]
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no model: it has no config.json; make one with `python -m convert`."
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is damaged ({error}): convert the model again.") from None


def abstract(part: str, config: Any, dtype: DTypeLike) -> nnx.Module:
    """The module of one part with shapes in place of arrays."""
    module = PARTS[part][1]
    return nnx.eval_shape(lambda: module(config, dtype=dtype, rngs=nnx.Rngs(0)))


def save_part(folder: Path, part: str, params: dict[str, Any]) -> None:
    """Writes one part's arrays (a nested dict) under `folder/part`."""
    ocp.save(folder.absolute() / part, params)


def load_part(
    folder: Path,
    part: str,
    config: Any,
    dtype: DTypeLike,
    sharding: Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding | None] | None = None,
) -> nnx.Module:
    """Restores one part, cast to `dtype`, each array straight into the sharding asked for.

    `sharding(path, shape)` names an array's sharding (path as "blocks/ffn/fc1/kernel"); without
    it all arrays go to the default device. Raises ModelError when the part isn't there.
    """
    if not (folder / part).is_dir():
        raise ModelError(f"{folder} holds no '{part}': convert the checkpoint that has it.")
    graph, state = nnx.split(abstract(part, config, dtype))

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = "/".join(str(entry.key) for entry in path)
        place = sharding(name, shape) if sharding else None
        place = place or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    wanted = jax.tree_util.tree_map_with_path(leaf, nnx.to_pure_dict(state))
    return nnx.merge(graph, ocp.load(folder.absolute() / part, wanted))


def cast(params: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """All arrays of a nested dict in another dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
