"""`tt-jax verify`: whether a model's folder holds what was converted, and works."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tt_jax._rollout import rollout
from tt_jax.checkpoint import (
    Stored,
    inside,
    load_arrays,
    load_part,
    read_manifest,
    read_stored,
    shapes,
)
from tt_jax.errors import ModelError
from tt_jax.models.tokenizer import Tokenizer
from tt_jax.models.vae import VAE
from tt_jax.nn.layers import wide
from tt_jax.strategies.self_forcing import SelfForcing

LEAST_PSNR = 15.0  # decibels of the test card's round trip; one grey for all of it has about 8
CARD = (5, 64, 64)  # frames, height, width


@dataclasses.dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        part: what of the model.
        check: what was looked at.
        result: what came out, in words.
        passed: whether it is as it should be.
    """

    part: str
    check: str
    result: str
    passed: bool


def verify(folder: Path) -> Iterator[Row]:
    """Checks a model's folder, part by part.

    Args:
        folder: the model's.

    Yields:
        The checks as they are done.

    Raises:
        ModelError: it is no model's folder, or its manifest is damaged.
    """
    stored, manifest = read_stored(folder), read_manifest(folder)
    yield Row("model", "kind", stored.kind, True)
    for part, config in stored.parts.items():
        recorded = manifest.get("parts", {}).get(part, {}).get("arrays")
        rows = list(check_arrays(folder, part, config, recorded))
        yield from rows
        if all(row.passed for row in rows) and part in TRIALS:
            yield TRIALS[part](folder, stored)
    if inside(folder, "tokenizer.model").exists():
        yield check_tokenizer(folder, stored, manifest.get("tokenizer"))


def table(rows: list[Row]) -> str:
    """The rows as text to be pasted.

    Args:
        rows: from `verify`.

    Returns:
        One line for each.
    """
    cells = [(r.part, r.check, "ok" if r.passed else "WRONG", r.result) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
        for row in cells
    )


def check_arrays(
    folder: Path, part: str, config: Any, recorded: dict[str, Any] | None
) -> Iterator[Row]:
    """A part's shapes against its config, its hashes against the manifest, and finiteness.

    Args:
        folder: the model's.
        part: a key of `checkpoint.PARTS`.
        config: the part's sizes.
        recorded: its arrays in the manifest, by path; None if there are none.

    Yields:
        A row for shapes, hashes and values, or one that says why the part can't be read.
    """
    leaves = shapes(part, config)
    misshapen, changed, not_finite, numbers = [], [], [], 0
    try:
        for path, array in load_arrays(folder, part, leaves):
            numbers += array.size
            if array.shape != leaves[path].shape:
                misshapen.append(path)
            if not np.isfinite(array).all():
                not_finite.append(path)
            if recorded is not None:
                digest = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                if recorded.get(path, {}).get("sha256") != digest.hexdigest():
                    changed.append(path)
    except ModelError as error:
        yield Row(part, "arrays", str(error), False)
        return
    yield _row(part, "shapes", misshapen, f"{len(leaves)} arrays, {numbers:,} numbers")
    if recorded is None:
        yield Row(part, "hashes", "not recorded: there is no manifest", True)
    else:
        yield _row(part, "hashes", changed, f"{len(leaves)} as in the manifest")
    yield _row(part, "values", not_finite, "all finite")


def _row(part: str, check: str, wrong: list[str], result: str) -> Row:
    return Row(part, check, f"wrong in {', '.join(wrong)}" if wrong else result, not wrong)


def check_tokenizer(folder: Path, stored: Stored, recorded: dict[str, Any] | None) -> Row:
    """The tokenizer against the manifest and the text encoder.

    Args:
        folder: the model's.
        stored: its `config.json`.
        recorded: the tokenizer in the manifest; None if it isn't there.

    Returns:
        One row: of what is wrong, or of the number of pieces.
    """
    path = inside(folder, "tokenizer.model")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if recorded is not None and recorded["sha256"] != digest:
        return Row("tokenizer", "hash", "not as in the manifest", False)
    try:
        vocab = Tokenizer(path, 8).vocab
    except (RuntimeError, ValueError, OSError):
        return Row("tokenizer", "pieces", "no sentencepiece model", False)
    text = stored.parts.get("text")
    return Row("tokenizer", "pieces", f"{vocab:,}", text is None or vocab <= text.vocab)


def draw_card() -> Float[np.ndarray, "1 T H W 3"]:
    """Moving colour bars above a grey ramp, in [-1, 1]."""
    frames, height, width = CARD
    x = (np.arange(width) + 2 * np.arange(frames)[:, None]) % width
    bars = 8 * x // width
    colour = np.stack([bars & 1, bars >> 1 & 1, bars >> 2 & 1], axis=-1) * 1.5 - 0.75
    card = np.empty((1, *CARD, 3), np.float32)
    card[0, :, : height // 2] = colour[:, None]
    card[0, :, height // 2 :] = np.linspace(-0.9, 0.9, width)[:, None]
    return card


@jax.jit
def _there_and_back(vae: VAE, video: Float[Array, "1 T H W 3"]) -> Float[Array, "1 T H W 3"]:
    return vae.decode(vae.encode(video))


def try_vae(folder: Path, stored: Stored) -> Row:
    """The test card through the VAE and back, in float32.

    Args:
        folder: the model's.
        stored: its `config.json`.

    Returns:
        A row with the PSNR in dB.
    """
    vae = load_part(folder, "vae", stored.parts["vae"], jnp.float32)
    card = draw_card()
    error = np.asarray(_there_and_back(vae, jnp.asarray(card))) - card
    psnr = 10 * np.log10(4 / max(float(np.mean(error**2)), 1e-12))
    result = f"PSNR {psnr:.1f} dB on the test card (at least {LEAST_PSNR:g})"
    return Row("vae", "round trip", result, bool(psnr >= LEAST_PSNR))


def try_dit(folder: Path, stored: Stored) -> Row:
    """One chunk of latents from noise and an empty text, in bfloat16.

    Args:
        folder: the model's.
        stored: its `config.json`.

    Returns:
        A row with mean and spread; it passes if all are finite.
    """
    config = stored.parts["dit"]
    dit = load_part(folder, "dit", config, jnp.bfloat16)
    text = jnp.zeros((1, config.text_len, config.text_dim), jnp.bfloat16)
    grid = (8 * config.patch, 8 * config.patch)
    own = stored.rollout  # a window makes no difference to the first chunk
    strategy = SelfForcing(steps=own.steps, shift=own.shift, chunk=own.chunk)
    out = rollout(dit, text, jax.random.key(0), chunks=1, grid=grid, strategy=strategy)
    latents = np.asarray(wide(out.latents))
    mean, spread = float(latents.mean()), float(latents.std())
    finite = bool(np.isfinite(latents).all())
    result = f"mean {mean:.3f}, spread {spread:.3f}, {'finite' if finite else 'NaN or infinite'}"
    return Row("dit", "one chunk", result, finite)


def try_tiny_vae(folder: Path, stored: Stored) -> Row:
    """A few frames from noise, in float32.

    Args:
        folder: of the model.
        stored: what its config.json says.

    Returns:
        A row that says whether all decoded frames are finite.
    """
    config = stored.parts["tiny_vae"]
    tiny = load_part(folder, "tiny_vae", config, jnp.float32)
    latents = jax.random.normal(jax.random.key(0), (1, 2, 8, 8, config.latent_channels))
    frames = np.asarray(jax.jit(type(tiny).decode)(tiny, latents))
    finite = bool(np.isfinite(frames).all())
    return Row("tiny_vae", "decoding", f"frames {'' if finite else 'not '}finite", finite)


TRIALS = {"vae": try_vae, "dit": try_dit, "tiny_vae": try_tiny_vae}
