"""What stands in a model's folder beside its arrays: sizes, kind, tokenizer, where it came from."""

import dataclasses
import json
import math
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tt_jax.errors import ModelError
from tt_jax.models.configs import ModelConfig, RolloutConfig, with_bits
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
    "shapes": Path(__file__).parents[1] / "shapes" / "weights",
    "shapes-young": Path(__file__).parents[1] / "shapes" / "weights-young",
}
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
    for values in parts.values():
        if values.get("quantize", "") is None:  # likewise what earlier versions didn't know
            del values["quantize"]
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
    folder: Path,
    needed: Collection[str] = tuple(PARTS),
    vae: str = "full",
    quantize: str | None = None,
) -> tuple[ModelConfig, str]:
    """The sizes of the model in `folder`, and its kind.

    Args:
        folder: The model's folder.
        needed: The parts that it must hold, the transformer at least.
        vae: "full", or "tiny": the VAE is the tiny autoencoder then, which the folder must hold.
        quantize: "int8": weights of transformer and text encoder are rounded when they are loaded,
            if they aren't already; None for as they are stored.

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
    config = ModelConfig(**parts, size=stored.size, rollout=stored.rollout)
    try:
        return with_bits(config, quantize), stored.kind
    except ValueError as error:
        raise ModelError(f"{folder} can't be quantised: {error}") from None


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
