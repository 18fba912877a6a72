"""Kills `tt-jax generate` at random moments: `python tests/kill_generate.py --count 50`.

Self Forcing and Rolling Forcing in turn, with TokenTrim and a script of prompts. Whatever has a
final name is whole, and the run goes on with --resume: the frames of its video and its record are
those of a run that nobody killed, bit for bit.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from models import write_tiny_model
from PIL import Image
from quick import FLAGS

from tt_jax.media.read import read_frames

ROOT = Path(__file__).parents[1]
PROGRAM = (
    "import sys; import tt_jax.cli.run; from tt_jax.cli.main import main; "
    "print('ready', flush=True); sys.exit(main())"
)
PROMPT = "a small red circle [1.5s] | a large blue square [2s] | a green star"
PRESETS = ("self-forcing+tokentrim-no-flowmo", "rolling-forcing+tokentrim-no-flowmo")
SETTINGS = ("--seconds", "9", "--save-every", "1", "--p", "0.2", "--lam", "-100", "--seed", "3")
CHUNKS = 13  # of 9 seconds
VARIES = ("command", "timings")


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """Starts `tt-jax generate` in a process of its own; returns when its imports are done."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,  # compiling is most of a run
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "generate", *arguments], env=environment, cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def finish(process: subprocess.Popen) -> None:
    """Waits for a process that should do well."""
    _, said = process.communicate()
    assert process.returncode == 0 and "Traceback" not in said, said


def made(folder: Path) -> tuple[str | None, dict | None]:
    """What has a final name: a digest of the video's frames, and the record. All of it is whole."""
    frames = record = None
    if (video := folder / "video.mp4").exists():
        digest = hashlib.sha256()
        for frame in read_frames(video):
            digest.update(frame.tobytes())
        frames = digest.hexdigest()
    if (file := folder / "video.json").exists():
        record = {k: v for k, v in json.loads(file.read_text()).items() if k not in VARIES}
    if (picture := folder / "video.png").exists():
        Image.open(picture).load()
    return frames, record


def reached(folder: Path) -> int:
    """The chunk of the latest state; beyond all of them where the video is there."""
    if (folder / "video.json").exists():
        return CHUNKS
    numbers = [int(file.name[6:]) for file in folder.glob("*/*/state-*")]
    return max(numbers, default=0)


def kills(count: int, folder: Path, seed: int = 0) -> Iterator[str]:
    """Kills `count` runs; yields what each had come to."""
    rng = random.Random(seed)
    model = write_tiny_model(folder / "tiny")
    whole, seconds = {}, {}
    for i in range(count):
        preset = PRESETS[i % len(PRESETS)]
        request = [PROMPT, "--model", str(model), "--preset", preset, *SETTINGS, "--out"]
        if preset not in whole:
            started = time.monotonic()
            finish(start(folder, *request, f"whole-{preset}"))
            seconds[preset] = time.monotonic() - started
            whole[preset] = made(folder / f"whole-{preset}")
        out = folder / f"run{i}"
        process = start(folder, *request, str(out))
        # Before the first state, or some time after one of them.
        if chunk := rng.randrange(CHUNKS):
            while process.poll() is None and reached(out) < chunk:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
        else:
            time.sleep(rng.uniform(0, seconds[preset] / 2))
        process.kill()
        process.communicate()
        for found, right in zip(made(out), whole[preset], strict=True):
            assert found in (None, right), "a damaged file under a final name"
        run = out / "video.run"
        states = len(list(run.glob("*/state-*")))
        if (run / "request.json").exists():
            end = f"{states} states" if states else "no state yet"
            finish(start(folder, "--resume", str(run)))
        elif not (out / "video.mp4").exists():
            end = "not begun"
            shutil.rmtree(out, ignore_errors=True)
            finish(start(folder, *request, str(out)))
        else:
            end = "finished"
        assert made(out) == whole[preset], "not what an uninterrupted run makes"
        assert not {p.suffix for p in out.iterdir()} - {".mp4", ".json", ".png"}
        left = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        assert left >= {"video.mp4", "video.json"} and not any("partial" in name for name in left)
        shutil.rmtree(out)
        yield f"{preset.split('+')[0]}: {end}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        ends = collections.Counter()
        for number, end in enumerate(kills(args.count, Path(temporary)), 1):
            print(number, end, flush=True)
            ends[end] += 1
    print(*(f"{count:5}  {end}" for end, count in sorted(ends.items())), sep="\n")
    print(f"{ends.total()} of {args.count}")
