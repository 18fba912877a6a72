"""How long a start takes: loading a transformer, and the second start of `tt-jax generate`.

    python -m benchmarks start           Wan-1.3B in bfloat16: 6 GB of disk, 10 GB of memory
    python -m benchmarks start --toy     two small layers

A transformer from our format against safetensors' own read of the same bytes, each in a process of
its own, with the files out of the system's cache (cold) and in it (warm). Memory is the process's
highest, less what it had before it loaded. Then `generate` twice with one cache of compiled
programs, which is empty before the first. The CPU's seconds are there for a busy machine.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from benchmarks._embedded import PROMPT
from tt_jax.checkpoint import save_arrays, shapes
from tt_jax.models.dit import DiTConfig

TOY = DiTConfig(dim=64, ffn_dim=128, layers=2, heads=2, text_dim=32, text_len=8, freq_dim=16)
BLOCK = 1 << 22  # random numbers that are drawn and repeated
# What a process prints: seconds, of them the CPU's, and bytes of memory that it took at most. (The
# system's ru_maxrss would begin with the parent's.)
MEASURE = """
import json, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from flax import nnx
{imports}
def highest():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return 1024 * int(lines["VmHWM"].split()[0])
jax.block_until_ready(jnp.zeros(()))
before, started, worked = highest(), time.perf_counter(), time.process_time()
{load}
seconds, worked = time.perf_counter() - started, time.process_time() - worked
print(json.dumps([seconds, worked, highest() - before]))
"""
LOADERS = {
    "tt_jax": (
        "from tt_jax.checkpoint import load_part\nfrom tt_jax.models.dit import DiTConfig",
        "model = load_part(Path(sys.argv[1]), 'dit', DiTConfig(**json.loads(sys.argv[2])), "
        "jnp.bfloat16)\njax.block_until_ready(nnx.state(model))",
    ),
    "safetensors": (
        "from safetensors.numpy import load_file",
        "held = load_file(Path(sys.argv[1]) / 'dit.safetensors')",
    ),
}


class Spent(NamedTuple):
    """Seconds of a process, of them the CPU's, and bytes of memory at most."""

    seconds: float
    worked: float
    memory: int


def write(folder: Path, config: DiTConfig) -> tuple[int, int]:
    """The same random transformer in both formats; bytes of all arrays, and of the largest."""
    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32) * np.float32(0.02)
    block = block.astype(ml_dtypes.bfloat16)
    leaves = shapes("dit", config)
    arrays = {name: np.resize(block, leaf.shape) for name, leaf in leaves.items()}
    save_file(arrays, folder / "dit.safetensors")
    save_arrays(folder, "dit", iter(arrays.items()))
    sizes = [array.nbytes for array in arrays.values()]
    os.sync()
    return sum(sizes), max(sizes)


def prepare(folder: Path, kind: str) -> None:
    """Takes the folder's files out of the system's cache ("cold"), or into it ("warm")."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                if kind == "cold":
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    while file.read(1 << 24):
                        pass


def load(name: str, folder: Path, config: DiTConfig) -> Spent:
    """Loads the transformer in a process of its own."""
    imports, loading = LOADERS[name]
    script = MEASURE.format(imports=imports, load=loading)
    command = [sys.executable, "-c", script, str(folder), json.dumps(dataclasses.asdict(config))]
    return Spent(*json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


def generate(cache: Path, out: Path) -> tuple[float, float, int]:
    """Seconds to the first chunk of `shapes`, loading not counted; the CPU's of the whole process;
    how many programs it compiled, all of which are kept."""
    command = [
        sys.executable, "-m", "tt_jax", "generate", PROMPT, "--seconds", "1", "--out", str(out),
    ]  # fmt: skip
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        env.pop(name, None)
    kept = len(list(cache.rglob("jit_*-cache")))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    timings = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["timings"]
    (spent,) = (value for value in timings.values() if isinstance(value, dict))
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent["first_chunk"], worked, len(list(cache.rglob("jit_*-cache"))) - kept


def main(argv: list[str]) -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks start", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="a small transformer, warm only")
    parser.add_argument("--repeats", type=int, default=1, help="of the loading")
    parser.add_argument("--folder", type=Path, help="where files go for as long as it takes")
    options = parser.parse_args(argv)
    config = TOY if options.toy else DiTConfig.wan_1_3b()
    with tempfile.TemporaryDirectory(dir=options.folder) as held:
        folder = Path(held)
        whole, largest = write(folder, config)
        print(f"{whole / 1e9:.3f} GB, the largest array {largest / 1e9:.3f} GB")
        print(
            "| read by | files | s | of them the CPU's | memory beside the arrays, of the largest |"
        )
        print("|---|---|---|---|---|")
        for kind in ["warm"] if options.toy else ["cold", "warm"] * options.repeats:
            for name in LOADERS:
                prepare(folder, kind)
                spent = load(name, folder, config)
                extra = (spent.memory - whole) / largest
                print(
                    f"| {name} | {kind} | {spent.seconds:.2f} | {spent.worked:.2f} | {extra:.2f} |"
                )
        first, second = (generate(folder / "cache", folder / f"{n}.mp4") for n in (1, 2))
    print("| start of `generate` | first chunk, s | of the first | CPU, s | programs kept |")
    print("|---|---|---|---|---|")
    for name, (seconds, worked, programs) in (("first", first), ("second", second)):
        share = f"{seconds / first[0]:.0%}"
        print(f"| {name} | {seconds:.2f} | {share} | {worked:.1f} | {programs} |")
