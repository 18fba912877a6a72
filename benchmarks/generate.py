"""Time and memory of `tt-jax generate` on the embedded model: a 30 s video, nothing cached."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._embedded import PROMPT


def main(argv: list[str]) -> None:
    """Runs the command in a process of its own, with an empty cache of compiled programs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks generate", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    print(f"{'run':>3}  {'load':>6}  {'first chunk':>11}  {'the rest':>8}  {'fps':>6}  peak memory")
    for run in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "tt_jax", "generate", PROMPT, "--seconds",
                str(options.seconds), "--seed", str(run), "--out", f"{folder}/video.mp4",
            ]  # fmt: skip
            home = {"XDG_CACHE_HOME": folder, **os.environ}
            subprocess.run(command, check=True, env=home, stdout=subprocess.DEVNULL)
            record = json.loads(Path(folder, "video.json").read_text())
        timings = record["timings"]
        (spent,) = (value for value in timings.values() if isinstance(value, dict))
        rest = spent["all_chunks"] - spent["first_chunk"]
        # Of all children so far: an upper bound from the second run on.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(
            f"{run:3d}  {timings['loading']:5.1f}s  {spent['first_chunk']:10.1f}s  {rest:7.1f}s  "
            f"{record['frames'] / rest:6.1f}  {peak:.2f} GiB"
        )
    print("The first chunk includes all compilation.")
