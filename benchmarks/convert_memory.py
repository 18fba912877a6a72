"""Memory of the two big conversions, with generated files in the true layouts.

    python -m benchmarks convert_memory --part dit     1.3B, float32 to bfloat16: 9 GB of disk
    python -m benchmarks convert_memory --part text    UMT5-XXL, bfloat16: 23 GB of disk

Anonymous memory of the converting process; mapped pages of the file don't count, since the system
takes them back whenever it wants.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from convert import dit, text
from convert.layout import Table
from convert.tensors import write_safetensors
from tt_jax.checkpoint import shapes
from tt_jax.models.dit import DiTConfig
from tt_jax.models.text import TextConfig

# The part's table, config, the file's dtype, the result's, and the most gigabytes allowed.
CASES = {
    "dit": (dit.native, DiTConfig.wan_1_3b(), np.float32, "bfloat16", 5),
    "text": (text.native, TextConfig.umt5_xxl(), ml_dtypes.bfloat16, "bfloat16", 16),
}
BLOCK = 1 << 24  # random numbers that are drawn; tensors begin at different places in them
INTERVAL = 0.02  # seconds between two looks at the memory


def write_random(path: Path, part: str, table: Table, config: object, dtype: np.dtype) -> None:
    """Writes a file with the true names and shapes."""
    leaves = shapes(part, config)
    layout = {
        name: (row.source_shape(leaves[row.path].shape), dtype)
        for row in table
        for name in row.names(leaves[row.path].shape)
    }
    block = np.random.default_rng(0).standard_normal(BLOCK, np.float32).astype(dtype)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for i, (name, (shape, _)) in enumerate(layout.items()):
            yield name, np.resize(block[12_345 * i % (BLOCK // 2) :], shape)

    write_safetensors(path, layout, tensors(), {})


def anonymous(pid: int) -> int:
    """Bytes of a process's anonymous memory; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def main(argv: list[str]) -> None:
    """Makes the file, converts it in a process of its own, and prints a row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks convert_memory")
    parser.add_argument("--part", choices=CASES, default="dit")
    args = parser.parse_args(argv)
    layout, config, dtype, result, bound = CASES[args.part]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        source = Path(folder) / "source.safetensors"
        write_random(source, args.part, layout(config), config, np.dtype(dtype))
        size = source.stat().st_size
        started = time.perf_counter()
        command = [sys.executable, "-m", "convert", str(source), f"{folder}/model"]
        process = subprocess.Popen([*command, "--dtype", result])
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit("the conversion failed.")
    print("| part | file | from | to | peak anonymous memory | allowed | time |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {args.part} | {size / 1e9:.1f} GB | {np.dtype(dtype).name} | {result} | "
        f"{peak / 1e9:.2f} GB | {bound} GB | {seconds:.0f} s |"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
