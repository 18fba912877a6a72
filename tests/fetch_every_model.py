"""A process of its own: fetches every known model into FOLDER, verifies it, makes some chunks and
decodes them with the tiny autoencoder.

python tests/fetch_every_model.py FOLDER        prints a JSON object, a report for each model
"""

import contextlib
import functools
import io
import json
import sys
import warnings
from pathlib import Path

import jax
import numpy as np

import tt_jax
from convert.known import KNOWN
from tt_jax.checkpoint import load_part, read_manifest, read_stored
from tt_jax.cli.main import main
from tt_jax.models.tiny_vae import TinyVAE
from tt_jax.verify import check_arrays

TAE, TINY = "taew2_1", "tiny_vae"
# For what nobody says of a model: any, here.
GUESSES = {"steps": (1000, 500), "shift": 5.0, "window": 9, "sink": 1}


@functools.cache
def tiny_vae(folder: Path) -> TinyVAE:
    """The fetched one."""
    return load_part(folder, TINY, read_stored(folder).parts[TINY], np.float32)


def report(name: str, folder: Path) -> dict:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(["fetch", name, str(folder)])
    if code != 0:
        return {"code": code, "said": said.getvalue()}
    stored, manifest = read_stored(folder), read_manifest(folder)["parts"]
    rows = [
        row
        for part, config in stored.parts.items()
        for row in check_arrays(folder, part, config, manifest[part]["arrays"])
    ]
    about = {
        "code": code,
        "said": said.getvalue(),
        "kind": stored.kind,
        "parts": sorted(stored.parts),
        "verified": all(row.passed for row in rows),
        "dit": manifest.get("dit"),
    }
    if "dit" not in stored.parts:
        return about
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe = tt_jax.load(folder, text=False, allow_bidirectional=True)
    about["warnings"] = [str(warning.message) for warning in caught]
    try:
        strategy = pipe.strategy()
    except ValueError as error:
        about["asked"] = str(error)
        guesses = {x: GUESSES[x] for x in stored.rollout.unknown}
        if "1step" in name:
            guesses["steps"] = (1000,)
        strategy = pipe.strategy(**guesses)
    about["strategy"] = repr(strategy)
    text = np.random.default_rng(0).normal(size=(1, 512, pipe.config.dit.text_dim))
    chunks = max(2, strategy.lag + 1)
    when = "first_step" if strategy.lag == 0 else "final"  # Rolling Forcing has the latter alone
    out = tt_jax.rollout(
        pipe.dit, text.astype(np.float32), jax.random.key(0), chunks=chunks, grid=(4, 4),
        strategy=strategy, trim=tt_jax.TokenTrim(when=when, warmup=1, lam=-1e6),
    )  # fmt: skip
    about["chunks"] = out.latents.shape[1] // strategy.chunk
    about["frames"] = strategy.chunk
    frames = jax.jit(TinyVAE.decode)(tiny_vae(folder.parent / TAE), out.latents)
    about["decoded"] = frames.shape[1]
    about["finite"] = bool(np.isfinite(out.latents).all() and np.isfinite(frames).all())
    return about


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    names = [TAE, *(name for name in KNOWN if name != TAE)]
    print(json.dumps({name: report(name, folder / name) for name in names}))
