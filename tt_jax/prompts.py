"""Prompts to embeddings before the rest of a model is loaded: Wan's text encoder is larger than its
transformer, and is needed for a moment. What it said of the latest prompts is kept on disk."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from tt_jax import __version__
from tt_jax.checkpoint import default_dtype, find, inside, load_part, load_tokenizer, read_config
from tt_jax.files import atomic, cache_folder
from tt_jax.models.tokenizer import clean
from tt_jax.sharding import everywhere, sharding

KEPT = 64  # prompts; a megabyte or so each, of Wan's


def check_prompts(prompts: Sequence[str]) -> None:
    """Looks at prompts before anything else is done with them.

    Args:
        prompts: all of a batch.

    Raises:
        ValueError: one of them is empty or no Unicode text, or there is none.
    """
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the prompt {prompt!a} isn't Unicode text.") from None
    if not prompts or not all(clean(prompt) for prompt in prompts):
        raise ValueError("the prompt is empty: say what the video should show.")


@partial(jax.jit, static_argnums=0)
def encode_text(
    graph: nnx.GraphDef, params: nnx.State, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]
) -> Float[Array, "b l e"]:
    """Embeddings of tokens by a text encoder that is split in two.

    Args:
        graph: of `nnx.split`.
        params: of `nnx.split`.
        ids: token ids.
        mask: True at a prompt's tokens.

    Returns:
        Embeddings in the dtype of the parameters; rows beyond the mask are zeros.
    """
    return everywhere(nnx.merge(graph, params)(ids, mask))


def encode_prompts(
    model: str | Path,
    prompts: str | Sequence[str],
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    *,
    quantize: str | None = None,
    device: str | None = None,
) -> Float[Array, "b l e"]:
    """Encodes prompts by the text encoder of a model alone.

    The encoder is loaded only if a prompt isn't among the latest, and freed before this returns:
    what is left of a device's memory is for `load(model, text=False)`. Warns when a prompt is too
    long.

    Args:
        model: as in `load`.
        prompts: one or several.
        dtype: as in `load`.
        mesh: as in `load`.
        quantize: as in `load`.
        device: the platform whose memory the encoder takes, "cpu" for the host's; JAX's default
            device, or the mesh, if not given.

    Returns:
        Embeddings `[B, text_len, text_dim]` in `dtype`, zero rows after each prompt's end.

    Raises:
        ValueError: a prompt is empty or no Unicode text.
        ModelError: the model's folder can't be used.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    config = read_config(find(model))[0].text
    rows = encode_rows(model, prompts, dtype, mesh, quantize=quantize, device=device)
    return jnp.asarray(padded(rows, config.text_len), default_dtype() if dtype is None else dtype)


def encode_rows(
    model: str | Path,
    prompts: Sequence[str],
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    *,
    quantize: str | None = None,
    device: str | None = None,
) -> list[Float[np.ndarray, "_ e"]]:
    """Encodes many prompts, for the host to keep.

    Args:
        model: as in `encode_prompts`, and so are the others.
        prompts: any number.
        dtype: of the encoder.
        mesh: of devices, over which the encoder is sharded.
        quantize: of the encoder's weights.
        device: where the encoder is.

    Returns:
        Of each prompt its embeddings, float32, without zero rows.

    Raises:
        ValueError: a prompt is empty or no Unicode text.
        ModelError: the model's folder can't be used.
    """
    folder = find(model)
    check_prompts(prompts)
    dtype = jnp.dtype(default_dtype() if dtype is None else dtype)
    config = read_config(folder, quantize=quantize)[0].text
    ids, mask = load_tokenizer(folder, config.text_len)(list(prompts))
    where = jax.devices(device)[0]
    origin = _origin(folder, dtype, config.quantize, where.platform)
    # Of several processes, all encode or none.
    alone = jax.process_count() == 1
    paths = [_place(origin, clean(prompt)) if alone else None for prompt in prompts]
    rows = [
        _read(path, count, config.dim)
        for path, count in zip(paths, mask.sum(1).tolist(), strict=True)
    ]
    places = None if mesh is None else sharding(mesh)
    if device is not None:
        there = jax.sharding.SingleDeviceSharding(where)
        places = lambda *_: there  # noqa: E731
    if missing := [i for i, known in enumerate(rows) if known is None]:
        parts = nnx.split(load_part(folder, "text", config, dtype, places))
        for i in missing:
            with nullcontext() if device is None else jax.default_device(where):
                made = encode_text(*parts, ids[i : i + 1], mask[i : i + 1])
            rows[i] = row = np.asarray(made)[0, : mask[i].sum()].astype(np.float32)
            _write(paths[i], row)
        del parts
    return [row for row in rows if row is not None]  # what was missing has been made


def padded(
    rows: Sequence[Float[np.ndarray, "_ e"]], length: int
) -> Float[np.ndarray, "b {length} e"]:
    """Embeddings as a batch.

    Args:
        rows: of `encode_rows`.
        length: to which each is padded.

    Returns:
        All of them, with zero rows after each prompt's end.
    """
    whole = np.zeros((len(rows), length, rows[0].shape[1]), np.float32)
    for one, row in zip(whole, rows, strict=True):
        one[: len(row)] = row
    return whole


def _origin(folder: Path, dtype: jnp.dtype, quantize: str | None, platform: str) -> str:
    """What tells an encoder's answers from all others: its files and when they were written, the
    programs that run it, and on what."""
    files = [inside(folder, "tokenizer.model"), *sorted(inside(folder, "text").rglob("*"))]
    facts = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    programs = __version__, jax.__version__, jax.default_backend(), platform
    return repr((facts, dtype.name, quantize, programs))


def _place(origin: str, prompt: str) -> Path | None:
    """The file of a prompt's embedding; None where there is no place for caches."""
    folder = cache_folder("prompts")
    name = hashlib.sha256(f"{origin}\n{prompt}".encode()).hexdigest()
    return folder and folder / f"{name}.npy"


def _read(path: Path | None, count: int, dim: int) -> Float[np.ndarray, "{count} {dim}"] | None:
    """What is kept under a name; None if nothing is, or something else."""
    if path is None:
        return None
    try:
        rows = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.shape == (count, dim) and rows.dtype == np.float32 else None


def _write(path: Path | None, rows: Float[np.ndarray, "n d"]) -> None:
    """Keeps a prompt, in place of the oldest one if there are too many; or not, on a full disk."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as aside:
            np.save(aside, rows)
        oldest_first = sorted(path.parent.glob("*.npy"), key=lambda file: file.stat().st_mtime_ns)
        for old in oldest_first[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        pass  # it is only a cache
