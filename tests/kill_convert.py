"""Kills conversions at random moments: `python tests/kill_convert.py --count 50`.

Half of them make a folder, half lay a generator over one. Afterwards there is no folder or a whole
one, old or new, and the next run works and leaves nothing else behind.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from checkpoints import BFLOAT16, BY_NAME, SHALLOW, random_tensors, save

from convert.__main__ import main
from tt_jax.checkpoint import read_manifest, read_stored
from tt_jax.verify import check_arrays

ROOT = Path(__file__).parents[1]
SIZE = dataclasses.replace(SHALLOW["dit"], dim=384, ffn_dim=1536, layers=4, heads=3)
PROGRAM = (
    "import sys; from convert.__main__ import main; print('ready', flush=True); sys.exit(main())"
)


def start(source: Path, model: Path) -> subprocess.Popen:
    """Starts a conversion in a process of its own; returns when its imports are done."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(source), str(model)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def convert(source: Path, model: Path) -> None:
    """A conversion that should do well, in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(source), str(model)]) == 0


def seed_of(model: Path) -> str:
    """Which source a model was made from; every array must be as in its manifest."""
    stored, manifest = read_stored(model), read_manifest(model)
    assert stored.parts.keys() == manifest["parts"].keys()
    for part, config in stored.parts.items():
        rows = list(check_arrays(model, part, config, manifest["parts"][part]["arrays"]))
        assert all(row.passed for row in rows), rows
    return manifest["parts"]["dit"]["files"][0]["file"]


def kills(count: int, folder: Path, seed: int = 0) -> Iterator[str]:
    """Kills `count` conversions; returns what each left."""
    rng = random.Random(seed)
    old, new = (
        save(
            folder / f"{name}.safetensors",
            random_tensors(BY_NAME["dit", "native"], SIZE, BFLOAT16, seed=i),
        )
        for i, name in enumerate(("old", "new"))
    )
    vae = save(folder / "vae.safetensors", random_tensors(BY_NAME["vae", "native"], SHALLOW["vae"]))
    convert(old, folder / "old")
    convert(vae, folder / "old")
    process, started = start(new, folder / "timed"), time.monotonic()
    assert process.wait() == 0
    whole = time.monotonic() - started
    for i in range(count):
        model = folder / f"model{i}" / "wan"
        over = i % 2 == 1
        if over:
            shutil.copytree(folder / "old", model)
        process = start(new, model)
        time.sleep(rng.uniform(0, whole))
        process.kill()
        process.communicate()
        if not model.exists():
            assert not over
            end = "no folder"
        else:
            end = f"the {seed_of(model).removesuffix('.safetensors')} model, whole"
            assert over or "new" in end
        convert(new, model)
        assert seed_of(model) == "new.safetensors"
        assert read_stored(model).parts.keys() == ({"dit", "vae"} if over else {"dit"})
        assert [path.name for path in model.parent.iterdir()] == ["wan"]
        shutil.rmtree(model.parent)
        yield f"{'laid over a model' if over else 'new folder'}: {end}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        ends = collections.Counter(kills(args.count, Path(temporary)))
    print(*(f"{count:5}  {end}" for end, count in sorted(ends.items())), sep="\n")
