"""Prompts to embeddings before the rest of a model is loaded: Wan's text encoder is larger than its
transformer, and is needed for a moment. What it said of the latest prompts is kept on disk."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from tt_jax import __version__
from tt_jax.checkpoint import default_dtype, find, inside, load_part, load_tokenizer, read_config
from tt_jax.files import atomic, cache_folder
from tt_jax.models.tokenizer import clean

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
    return nnx.merge(graph, params)(ids, mask)


def encode_prompts(
    model: str | Path, prompts: str | Sequence[str], dtype: DTypeLike | None = None
) -> Float[Array, "b l e"]:
    """Encodes prompts by the text encoder of a model alone.

    The encoder is loaded only if a prompt isn't among the latest, and freed before this returns:
    what is left of a device's memory is for `load(model, text=False)`. Warns when a prompt is too
    long.

    Args:
        model: as in `load`.
        prompts: one or several.
        dtype: as in `load`.

    Returns:
        Embeddings `[B, text_len, text_dim]` in `dtype`, zero rows after each prompt's end.

    Raises:
        ValueError: a prompt is empty or no Unicode text.
        ModelError: the model's folder can't be used.
    """
    folder = find(model)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_prompts(prompts)
    dtype = jnp.dtype(default_dtype() if dtype is None else dtype)
    config = read_config(folder)[0].text
    ids, mask = load_tokenizer(folder, config.text_len)(prompts)
    origin = _origin(folder, dtype)
    paths = [_place(origin, clean(prompt)) for prompt in prompts]
    rows = [
        _read(path, count, config.dim)
        for path, count in zip(paths, mask.sum(1).tolist(), strict=True)
    ]
    if missing := [i for i, known in enumerate(rows) if known is None]:
        parts = nnx.split(load_part(folder, "text", config, dtype))
        for i in missing:
            made = encode_text(*parts, ids[i : i + 1], mask[i : i + 1])
            rows[i] = row = np.asarray(made[0, : mask[i].sum()].astype(jnp.float32))
            _write(paths[i], row)
        del parts
    padded = np.zeros((len(prompts), config.text_len, config.dim), np.float32)
    for whole_prompt, known in zip(padded, rows, strict=True):
        assert known is not None  # what was missing has been made
        whole_prompt[: len(known)] = known
    return jnp.asarray(padded, dtype)


def _origin(folder: Path, dtype: jnp.dtype) -> str:
    """What tells an encoder's answers from all others: its files and when they were written, the
    programs that run it, and on what."""
    files = [inside(folder, "tokenizer.model"), *sorted(inside(folder, "text").rglob("*"))]
    facts = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    programs = __version__, jax.__version__, jax.default_backend()
    return repr((facts, dtype.name, programs))


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
