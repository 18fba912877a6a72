"""A model's folder: `config.json`, a `manifest.json`, the tokenizer, and orbax arrays per part.

FOLDER/config.json      sizes and kind, readable
FOLDER/manifest.json    where each array came from (written by `convert`)
FOLDER/tokenizer.model  sentencepiece
FOLDER/{dit,vae,text}/  arrays; a folder may hold only some of the parts
"""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike
from orbax.checkpoint import v1 as ocp

from tt_jax.errors import ModelError
from tt_jax.models.configs import ModelConfig, RolloutConfig
from tt_jax.models.dit import DiT, DiTConfig
from tt_jax.models.text import TextConfig, TextEncoder
from tt_jax.models.vae import VAE, VAEConfig

PARTS: dict[str, tuple[type, type]] = {
    "dit": (DiTConfig, DiT),
    "vae": (VAEConfig, VAE),
    "text": (TextConfig, TextEncoder),
}
# Models that come with the package.
EMBEDDED = {"shapes": Path(__file__).parent / "shapes" / "weights"}
BATCH = 256 << 20  # bytes of arrays that are written or read at once
# What a transformer was trained to do: only a causal generator can be rolled out.
ROLLOUT_VERSION = 1  # of the entry `rollout` in config.json
KINDS = ("bidirectional", "causal generator", "unknown")


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a folder's `config.json` says. `parts`: a config for each part that the folder holds."""

    kind: str = "unknown"
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] = ModelConfig.size
    rollout: RolloutConfig = ModelConfig.rollout


def write_stored(folder: Path, stored: Stored) -> None:
    """Writes `config.json`; parts that aren't there are null."""
    parts = {name: dataclasses.asdict(c) for name, c in stored.parts.items()}
    rollout = {"version": ROLLOUT_VERSION} | dataclasses.asdict(stored.rollout)
    about = {"size": stored.size, "rollout": rollout}
    text = json.dumps({"kind": stored.kind, **dict.fromkeys(PARTS), **parts, **about}, indent=2)
    (folder / "config.json").write_text(text + "\n")


def read_stored(folder: Path) -> Stored:
    """What the model in `folder` is; it may lack parts. Raises ModelError."""
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text())
        parts = {}
        for name, (kind, _) in PARTS.items():
            if stored[name] is not None:
                fields = {
                    key: tuple(value) if isinstance(value, list) else value
                    for key, value in stored[name].items()
                }
                parts[name] = kind(**fields)
        rollout = _read_rollout(stored)
        return Stored(stored["kind"], parts, tuple(stored["size"]), rollout)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(
            f"{folder} holds no model: it has no config.json; make one with `python -m convert`."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is damaged ({error}): convert the model again.") from None


def _read_rollout(stored: dict[str, Any]) -> RolloutConfig:
    """The entry `rollout`; what it lacks takes Self Forcing's values."""
    entry = dict(stored.get("rollout", {}))
    version = entry.pop("version", ROLLOUT_VERSION)
    if version != ROLLOUT_VERSION:
        raise ValueError(f"its rollout entry is of version {version}, not {ROLLOUT_VERSION}")
    if "window" in stored:  # where earlier folders said it
        entry.setdefault("window", stored["window"])
    if "steps" in entry:
        entry["steps"] = tuple(entry["steps"])
    return RolloutConfig(**entry)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `convert` recorded of the folder's arrays; empty without a manifest. Raises ModelError.

    "parts": for each part its "arrays", and for each path the "shape", "dtype" and "sha256".
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        for part in manifest["parts"].values():
            for entry in part["arrays"].values():
                _ = entry["shape"], entry["dtype"], entry["sha256"]
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is damaged ({error}): convert the model again.") from None
    return manifest


def write_config(folder: Path, config: ModelConfig, kind: str) -> None:
    """Writes the `config.json` of a whole model."""
    parts = {name: getattr(config, name) for name in PARTS}
    write_stored(folder, Stored(kind, parts, config.size, config.rollout))


def read_config(folder: Path) -> tuple[ModelConfig, str]:
    """The sizes of the whole model in `folder`, and its kind. Raises ModelError."""
    stored = read_stored(folder)
    if missing := [name for name in PARTS if name not in stored.parts]:
        raise ModelError(f"{folder} holds no {missing[0]!r}: convert the checkpoint that has it.")
    return ModelConfig(**stored.parts, size=stored.size, rollout=stored.rollout), stored.kind


def flatten(params: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Paths and leaves of a nested dict."""
    for key, value in params.items():
        path = f"{before}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{path}/")
        else:
            yield path, value


def nest(leaves: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `flatten`: whole numbers become places in a list (`int` keys)."""
    params: dict[Any, Any] = {}
    for path, value in leaves.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return params


def abstract(part: str, config: Any, dtype: DTypeLike) -> Any:
    """The module of one part, a DiT, VAE or TextEncoder, with shapes in place of arrays."""
    module = PARTS[part][1]
    return nnx.eval_shape(lambda: module(config, dtype=dtype, rngs=nnx.Rngs(0)))


@lru_cache(maxsize=8)
def shapes(part: str, config: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    """The path of every array of a part, like "blocks/ffn/fc1/kernel", and its shape."""
    return dict(flatten(nnx.to_pure_dict(nnx.state(abstract(part, config, np.float32)))))


def save_part(folder: Path, part: str, params: dict[str, Any]) -> None:
    """Writes one part's arrays (a nested dict) under `folder/part`."""
    ocp.save(str(folder.absolute() / part), params)
    # It says nothing but the path of the machine that wrote it.
    (folder / part / "commit_success.txt").unlink(missing_ok=True)


def save_arrays(folder: Path, part: str, arrays: Iterator[tuple[str, np.ndarray]]) -> None:
    """Like `save_part`, for paths and arrays that come one by one: only some are in memory.

    Raises OSError when they can't be written.
    """
    path = folder.absolute() / part
    batch: dict[str, np.ndarray] = {}
    for name, array in arrays:
        batch[name] = array
        del array  # or the largest array stays in memory while the next one is made
        if sum(x.nbytes for x in batch.values()) >= BATCH:
            _save_batch(path, batch)
            batch.clear()
    if batch:
        _save_batch(path, batch)
    ocp.partial.finalize(str(path))


def _save_batch(path: Path, batch: Mapping[str, np.ndarray]) -> None:
    try:
        ocp.partial.save(str(path), nest(batch))
    except Exception as error:  # a full disk is a ValueError of tensorstore, for one
        raise OSError(f"{path} can't be written: {str(error).splitlines()[0]}") from None


def array_dtypes(folder: Path, part: str) -> dict[str, np.dtype]:
    """The dtype with which each array of a part was stored. Raises ModelError."""
    return {name: np.dtype(x.dtype) for name, x in _stored(folder, part).items()}


def _stored(folder: Path, part: str) -> dict[str, Any]:
    """What is known of each array of a part without reading it. Raises ModelError."""
    path = folder.absolute() / part
    try:
        return dict(flatten(ocp.metadata(str(path)).metadata))
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        raise ModelError(f"{path} can't be read: {str(error).splitlines()[0]}") from None


def load_arrays(
    folder: Path, part: str, wanted: Collection[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a part in the order of `wanted`, as they were stored, only some in memory.

    wanted: all paths of the part. Raises ModelError when the part holds others or is damaged.
    """
    path, stored, names = folder.absolute() / part, _stored(folder, part), list(wanted)
    if different := stored.keys() ^ wanted:
        raise ModelError(f"{path} is damaged: {min(different)} shouldn't be there, or isn't.")
    while names:
        batch = [names.pop(0)]
        while names and sum(_bytes(stored[name]) for name in [*batch, names[0]]) <= BATCH:
            batch.append(names.pop(0))
        only = dict.fromkeys(stored, ocp.PLACEHOLDER)
        only |= {name: np.empty(stored[name].shape, stored[name].dtype) for name in batch}
        try:
            loaded = dict(flatten(ocp.load(str(path), nest(only))))
        except Exception as error:  # as above
            raise ModelError(f"{path} can't be read: {str(error).splitlines()[0]}") from None
        for name in batch:
            yield name, loaded.pop(name)


def _bytes(stored: Any) -> int:
    return math.prod(stored.shape) * np.dtype(stored.dtype).itemsize


def load_part(
    folder: Path,
    part: str,
    config: Any,
    dtype: DTypeLike,
    sharding: Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding | None] | None = None,
) -> Any:
    """Restores one part, a DiT, VAE or TextEncoder, cast to `dtype`.

    Each array goes straight into the sharding asked for: `sharding(path, shape)` names it (path as
    "blocks/ffn/fc1/kernel"); without it all arrays go to the default device. Raises ModelError when
    the part isn't there.
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
    return nnx.merge(graph, ocp.load(str(folder.absolute() / part), wanted))


def cast(params: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """All arrays of a nested dict in another dtype."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def find(model: str | Path) -> Path:
    """The folder of a model: "shapes", or a converted checkpoint's. Raises ModelError."""
    folder = EMBEDDED.get(str(model), Path(model))
    if not folder.is_dir():
        names = ", ".join(map(repr, EMBEDDED))
        raise ModelError(
            f"there is no model {str(model)!r}: give {names} (embedded) or the folder of a "
            "converted checkpoint."
        )
    return folder


def default_dtype() -> DTypeLike:
    """float32 on a CPU, bfloat16 on a GPU or TPU."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
