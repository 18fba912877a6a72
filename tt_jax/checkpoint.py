"""A model's folder: `config.json`, a `manifest.json`, the tokenizer, and orbax arrays per part.

FOLDER/config.json      sizes and kind, readable
FOLDER/manifest.json    where each array came from (written by `convert`)
FOLDER/tokenizer.model  sentencepiece
FOLDER/vocabulary.json  of a model that knows few words: those, and what it can draw
FOLDER/{dit,vae,text,tiny_vae}/  arrays; a folder may hold only some of the parts

What isn't there is taken from the folder that config.json names as "shared", if it names one.
"""

import dataclasses
import json
import math
import typing
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
from tt_jax.models.tiny_vae import TinyVAE, TinyVAEConfig
from tt_jax.models.tokenizer import Tokenizer, Vocabulary
from tt_jax.models.vae import VAE, VAEConfig

# What a whole model consists of: for each part its sizes and its module.
PARTS: dict[str, tuple[type, type]] = {
    "dit": (DiTConfig, DiT),
    "vae": (VAEConfig, VAE),
    "text": (TextConfig, TextEncoder),
}
# What a folder may hold: a tiny autoencoder too, to be taken instead of the VAE.
HELD = {**PARTS, "tiny_vae": (TinyVAEConfig, TinyVAE)}
VAES = {"full": "vae", "tiny": "tiny_vae"}  # which VAE decodes: its part
# Models that come with the package.
EMBEDDED = {
    "shapes": Path(__file__).parent / "shapes" / "weights",
    "shapes-young": Path(__file__).parent / "shapes" / "weights-young",
}
BATCH = 256 << 20  # bytes of arrays that are written or read at once
ROLLOUT_VERSION = 1  # of the entry `rollout` in config.json
COMMON, RARE = RolloutConfig(), ("strategy", "cache", "unknown", "lacks")
# What a transformer was trained to do: only a causal generator can be rolled out.
KINDS = ("bidirectional", "causal generator", "unknown")
LARGEST = 1 << 20  # of any size in a `config.json`
# What a published checkpoint is known by, which isn't a model's folder yet.
FOREIGN_SETTINGS = {"_class_name", "_diffusers_version", "model_type", "architectures"}
FOREIGN_FILES = ("*.safetensors", "*.pt", "*.pth", "model_index.json")


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a folder's `config.json` says.

    Args:
        kind: What the transformer was trained to do, one of `KINDS`.
        parts: A config for each part that the folder holds, by the keys of `PARTS`.
        size: Height and width of the model's videos in pixels.
        rollout: How it was trained to be rolled out.
        shared: Another folder, seen from this one, that holds what this one lacks.
    """

    kind: str = "unknown"
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] = ModelConfig.size
    rollout: RolloutConfig = ModelConfig.rollout
    shared: str | None = None


def inside(folder: Path, name: str) -> Path:
    """Where a part or file of a model lies.

    Args:
        folder: The model's folder.
        name: Of the part or file.

    Returns:
        Its path in the folder, or in the folder that it is shared with, if it is only there.
    """
    path = folder.absolute() / name
    if not path.exists():
        try:
            shared = json.loads((folder / "config.json").read_text(encoding="utf-8"))["shared"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return path
        other = (folder.absolute() / str(shared) / name).resolve()
        return other if other.exists() else path
    return path


def write_stored(folder: Path, stored: Stored) -> None:
    """Writes a folder's `config.json`; parts that aren't there are null.

    Args:
        folder: The model's folder.
        stored: What to write.
    """
    parts = {name: dataclasses.asdict(c) for name, c in stored.parts.items()}
    entries = dataclasses.asdict(stored.rollout).items()
    # What most models don't have isn't written: folders stay as earlier versions read them.
    rollout = {name: x for name, x in entries if name not in RARE or x != getattr(COMMON, name)}
    rollout = {"version": ROLLOUT_VERSION, **rollout}
    about = {"size": stored.size, "rollout": rollout}
    about |= {"shared": stored.shared} if stored.shared else {}
    text = json.dumps({"kind": stored.kind, **dict.fromkeys(PARTS), **parts, **about}, indent=2)
    (folder / "config.json").write_text(text + "\n")


def read_stored(folder: Path) -> Stored:
    """Reads a folder's `config.json`.

    Args:
        folder: The model's folder, which may lack parts.

    Returns:
        What it says.

    Raises:
        ModelError: The folder holds no model, or the file is damaged.
    """
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        _refuse_unconverted(folder, {})
        raise ModelError(
            f"{folder} holds no model: it has no config.json; make one with `python -m convert`."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}): convert the model again.") from None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}.") from None
    try:
        if not PARTS.keys() <= stored.keys():
            _refuse_unconverted(folder, stored)
        parts = {name: _config(name, stored[name]) for name in HELD if stored.get(name) is not None}
        size = _value("size", stored["size"], tuple[int, ...])
        if len(size) != 2 or stored["kind"] not in KINDS:
            raise ValueError(f"size {size}, kind {stored['kind']!r}")
        shared = stored.get("shared")
        if shared is not None and not isinstance(shared, str):
            raise ValueError(f"shared {shared!r}")
        return Stored(stored["kind"], parts, size, _read_rollout(stored), shared)
    except ModelError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is damaged ({error}): convert the model again.") from None


def _read_rollout(stored: Mapping[str, Any]) -> RolloutConfig:
    """The entry `rollout`; what it lacks takes Self Forcing's values. Raises as `_config` does."""
    entry = dict(stored.get("rollout", {}))
    version = entry.pop("version", ROLLOUT_VERSION)
    if version != ROLLOUT_VERSION:
        raise ValueError(f"its rollout entry is of version {version}, not {ROLLOUT_VERSION}")
    if "window" in stored:  # where earlier folders said it
        entry.setdefault("window", stored["window"])
    types = typing.get_type_hints(RolloutConfig)
    least = {"sink": 0}
    return RolloutConfig(
        **{
            name: _value(f"rollout.{name}", value, types[name], least.get(name, 1))
            for name, value in entry.items()
        }
    )


def _refuse_unconverted(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ModelError if `folder` is a published checkpoint."""
    files = (file for pattern in FOREIGN_FILES for file in folder.glob(pattern))
    if FOREIGN_SETTINGS & settings.keys() or any(files):
        raise ModelError(
            f"{folder} is an unconverted checkpoint: make a model of it with `python -m convert "
            f"{folder} NEW_FOLDER`."
        )


def _config(part: str, values: Mapping[str, Any]) -> Any:
    """A part's sizes. Raises ValueError, TypeError, KeyError or AttributeError."""
    kind = HELD[part][0]
    types = typing.get_type_hints(kind)
    return kind(**{name: _value(f"{part}.{name}", x, types[name]) for name, x in values.items()})


def _value(name: str, value: Any, wanted: Any, least: int = 1) -> Any:
    """A setting of the type wanted, a list as a tuple; of integers, `least` or more.

    Raises ValueError.
    """
    if type(None) in typing.get_args(wanted):  # one type or None
        if value is None:
            return None
        wanted = typing.get_args(wanted)[0]
    if typing.get_origin(wanted) is tuple and isinstance(value, list):
        inner = typing.get_args(wanted)[0]
        if not value:
            raise ValueError(f"{name} is empty")
        return tuple(_value(name, item, inner) for item in value)
    if wanted is str and type(value) is str:
        return value
    if wanted is int and type(value) is int and least <= value <= LARGEST:
        return value
    if wanted is float and type(value) in (int, float) and math.isfinite(value):
        return value
    if wanted is bool and type(value) is bool:
        return value
    raise ValueError(f"{name} can't be {value!r:.80}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads what `convert` recorded of the folder's arrays.

    Args:
        folder: The model's folder.

    Returns:
        Empty without a manifest; else, under "parts", for each part its "arrays", and for each path
        the "shape", "dtype" and "sha256".

    Raises:
        ModelError: The manifest is damaged.
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


def write_config(folder: Path, config: ModelConfig, kind: str, shared: str | None = None) -> None:
    """Writes the `config.json` of a whole model.

    Args:
        folder: The model's folder.
        config: Sizes of all parts.
        kind: What the transformer was trained to do, one of `KINDS`.
        shared: Another folder, seen from this one, that holds what this one lacks.
    """
    parts = {name: getattr(config, name) for name in PARTS}
    write_stored(folder, Stored(kind, parts, config.size, config.rollout, shared))


def read_config(
    folder: Path, needed: Collection[str] = tuple(PARTS), vae: str = "full"
) -> tuple[ModelConfig, str]:
    """The sizes of the model in `folder`, and its kind.

    Args:
        folder: The model's folder.
        needed: The parts that it must hold, the transformer at least.
        vae: "full", or "tiny": the VAE is the tiny autoencoder then, which the folder must hold.

    Returns:
        The sizes, those of parts that aren't there as published for such a transformer, and the
        kind, see `KINDS`.

    Raises:
        ModelError: The folder holds no such model.
    """
    if vae not in VAES:
        raise ModelError(f"there is no VAE {vae!r}: give one of {', '.join(map(repr, VAES))}.")
    stored = read_stored(folder)
    if vae == "tiny" and "tiny_vae" not in stored.parts:
        raise ModelError(
            f"{folder} holds no tiny autoencoder: `tt-jax fetch taew2_1 {folder}` adds Wan2.1's, "
            f"`python -m convert FILE {folder}` one of a file; or go on with the full VAE."
        )
    needed = {VAES[vae] if name == "vae" else name for name in needed}
    if missing := [name for name in HELD if name in needed and name not in stored.parts]:
        raise ModelError(f"{folder} holds no {missing[0]!r}: convert the checkpoint that has it.")
    parts = {**_published(stored.parts["dit"]), **stored.parts}
    tiny = parts.pop("tiny_vae", None)
    if vae == "tiny":
        parts["vae"] = tiny
    return ModelConfig(**parts, size=stored.size, rollout=stored.rollout), stored.kind


def _published(dit: DiTConfig) -> dict[str, Any]:
    """The sizes of Wan's VAE and text encoder, for this transformer."""
    channels = dit.channels
    vae = VAEConfig()
    if channels != vae.latent_channels:
        plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
        vae = dataclasses.replace(vae, latent_channels=channels, **plain)
    text = dataclasses.replace(TextConfig.umt5_xxl(), dim=dit.text_dim, text_len=dit.text_len)
    return {"vae": vae, "text": text}


def vae_part(config: ModelConfig) -> str:
    """The part that a model's VAE is: "vae", or "tiny_vae"."""
    return next(name for name in VAES.values() if isinstance(config.vae, HELD[name][0]))


def flatten(params: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested dict.

    Args:
        params: The dict.
        before: Stands in front of every path.

    Yields:
        Each leaf's path, its keys joined by slashes, and the leaf.
    """
    for key, value in params.items():
        path = f"{before}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{path}/")
        else:
            yield path, value


def nest(leaves: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `flatten`.

    Args:
        leaves: By their paths.

    Returns:
        The nested dict; whole numbers in a path are places in a list (`int` keys).
    """
    params: dict[Any, Any] = {}
    for path, value in leaves.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return params


def abstract(part: str, config: Any, dtype: DTypeLike) -> Any:
    """The module of one part, with shapes in place of arrays.

    Args:
        part: A key of `HELD`.
        config: The part's sizes.
        dtype: Of its arrays.

    Returns:
        The part's module of `jax.ShapeDtypeStruct`s.
    """
    graph, state = _abstract(part, config, np.dtype(dtype))
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))  # variables of its own


@lru_cache(maxsize=16)
def _abstract(part: str, config: Any, dtype: np.dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """The same in two halves, which take a while to make."""
    module = HELD[part][1]
    return nnx.split(nnx.eval_shape(lambda: module(config, dtype=dtype, rngs=nnx.Rngs(0))))


@lru_cache(maxsize=8)
def shapes(part: str, config: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    """The shapes of a part's arrays, as float32.

    Args:
        part: A key of `PARTS`.
        config: The part's sizes.

    Returns:
        For the path of every array, like "blocks/ffn/fc1/kernel", its shape.
    """
    return dict(flatten(nnx.to_pure_dict(nnx.state(abstract(part, config, np.float32)))))


def save_part(folder: Path, part: str, params: dict[str, Any]) -> None:
    """Writes one part's arrays under `folder/part`.

    Args:
        folder: The model's folder.
        part: A key of `PARTS`.
        params: A nested dict of arrays.
    """
    ocp.save(str(folder.absolute() / part), params)
    # It says nothing but the path of the machine that wrote it.
    (folder / part / "commit_success.txt").unlink(missing_ok=True)


def save_arrays(folder: Path, part: str, arrays: Iterator[tuple[str, np.ndarray]]) -> None:
    """Like `save_part`, for arrays that come one by one: only some are in memory at once.

    Args:
        folder: The model's folder.
        part: A key of `PARTS`.
        arrays: Paths and arrays.

    Raises:
        OSError: They can't be written.
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
    """The dtypes in which a part is stored.

    Args:
        folder: The model's folder.
        part: A key of `PARTS`.

    Returns:
        Each array's dtype, by its path.

    Raises:
        ModelError: The part isn't there, or is damaged.
    """
    return {name: np.dtype(x.dtype) for name, x in _stored(folder, part).items()}


def _stored(folder: Path, part: str) -> dict[str, Any]:
    """What is known of each array of a part without reading it. Raises ModelError."""
    path = inside(folder, part)
    try:
        return dict(flatten(ocp.metadata(str(path)).metadata))
    except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
        raise ModelError(f"{path} can't be read: {str(error).splitlines()[0]}") from None


def load_arrays(
    folder: Path, part: str, wanted: Collection[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the arrays of a part one by one, only some in memory at once.

    Args:
        folder: The model's folder.
        part: A key of `PARTS`.
        wanted: All paths of the part.

    Yields:
        Paths in the order of `wanted`, and arrays as they were stored.

    Raises:
        ModelError: The part isn't there, holds other arrays, or is damaged.
    """
    path, stored, names = inside(folder, part), _stored(folder, part), list(wanted)
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
    """Restores one part, each array straight into its sharding.

    Args:
        folder: The model's folder.
        part: A key of `HELD`.
        config: The part's sizes.
        dtype: Of the result.
        sharding: Names the sharding of an array, by its path (like "blocks/ffn/fc1/kernel") and
            shape; without it, or where it returns None, arrays go to the default device.

    Returns:
        The module, as `HELD` says.

    Raises:
        ModelError: The part isn't there, is damaged, or isn't of these sizes.
    """
    path = inside(folder, part)
    if not path.is_dir():
        raise ModelError(f"{folder} holds no '{part}': convert the checkpoint that has it.")
    try:
        graph, state = nnx.split(abstract(part, config, dtype))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ModelError(f"the sizes of {path} make no model: {error}") from None
    ours = dict(flatten(nnx.to_pure_dict(state)))
    stored = _stored(folder, part)
    if different := stored.keys() ^ ours.keys():
        raise ModelError(f"{path} is damaged: {min(different)} shouldn't be there, or isn't.")
    for name, leaf_shape in ours.items():
        if tuple(stored[name].shape) != leaf_shape.shape:
            raise ModelError(
                f"{path} doesn't fit its config.json: {name} is {list(stored[name].shape)}, "
                f"expected {list(leaf_shape.shape)}; convert the model again."
            )

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = "/".join(str(entry.key) for entry in path)
        place = sharding(name, shape) if sharding else None
        place = place or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    wanted = jax.tree_util.tree_map_with_path(leaf, nnx.to_pure_dict(state))
    try:
        return nnx.merge(graph, ocp.load(str(path), wanted))
    except Exception as error:  # as above
        raise ModelError(f"{path} can't be read: {str(error).splitlines()[0]}") from None


def load_tokenizer(folder: Path, text_len: int) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        folder: The model's folder.
        text_len: Tokens to which every prompt is padded or cut.

    Returns:
        The tokenizer, which knows the model's vocabulary if the folder has one.

    Raises:
        ModelError: The folder has no tokenizer, or it or the vocabulary is damaged.
    """
    path = inside(folder, "tokenizer.model")
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.model: convert the model again.")
    return Tokenizer(path, text_len, _read_vocabulary(folder))


def write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Writes `vocabulary.json`.

    Args:
        folder: The model's folder.
        vocabulary: The words that the model knows, and what it can draw.
    """
    entries = {"draws": vocabulary.draws, "words": sorted(vocabulary.words)}
    (folder / "vocabulary.json").write_text(json.dumps(entries, indent=1) + "\n")


def _read_vocabulary(folder: Path) -> Vocabulary | None:
    path = inside(folder, "vocabulary.json")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Vocabulary(frozenset(map(str, stored["words"])), str(stored["draws"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is damaged ({error}): convert the model again.") from None


def cast(params: dict[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """All arrays of a nested dict in another dtype.

    Args:
        params: The dict.
        dtype: Of the result.

    Returns:
        The same dict of JAX's arrays.
    """
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def find(model: str | Path) -> Path:
    """The folder of a model.

    Args:
        model: "shapes" or "shapes-young", which are embedded, or a converted checkpoint's folder.

    Returns:
        The folder, which exists.

    Raises:
        ModelError: There is no such model, or it is a file that has to be converted.
    """
    folder = EMBEDDED.get(str(model), Path(model))
    if not folder.is_dir():
        if folder.is_file():
            raise ModelError(
                f"{folder} is a file: make a model of it with `python -m convert {folder} "
                "NEW_FOLDER`."
            )
        names = ", ".join(map(repr, EMBEDDED))
        raise ModelError(
            f"there is no model {str(model)!r}: give {names} (embedded) or the folder of a "
            "converted checkpoint; `tt-jax fetch NAME FOLDER` makes one of a published model, "
            "`python -m convert` of files."
        )
    return folder


def default_dtype() -> DTypeLike:
    """float32 on a CPU, bfloat16 on a GPU or TPU."""
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
