"""All that one accelerator must tell about Wan-1.3B's rollout, in one call of at most six minutes.

    python -m benchmarks device          on one GPU, at 832x480 in bfloat16 with random weights
    python -m benchmarks device --toy    all of it at toy size on any machine

Each part is written to a JSON file as it ends, so that a call which is cut off loses its last part
only; a part that fails says why, and the next one goes on. With torch on the machine, its layers
(SDPA, compiled) run on the same card in the same call.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks import _parts
from tt_jax.files import atomic
from tt_jax.models.dit import DiTConfig
from tt_jax.models.tiny_vae import TinyVAEConfig
from tt_jax.models.vae import VAEConfig

PARTS = {
    "device": _parts.device,
    "matmul": _parts.matmul,
    "attention": _parts.attention,
    "tokentrim": _parts.tokentrim,
    "window 12, sink 3": _parts.sink,
    "decoders": _parts.decoders,
    "torch": _parts.torch_layers,
    "length": _parts.length,
    "precision": _parts.precision,
}


def settings(toy: bool) -> _parts.Settings:
    """What is measured: Wan-1.3B at 832x480, or next to nothing."""
    if not toy:
        return _parts.Settings(
            DiTConfig.wan_1_3b(), VAEConfig.wan(), TinyVAEConfig(),
            grid=(60, 104), side=8192, lengths=(10, 40, 160), repeats=5,
        )  # fmt: skip
    dit = DiTConfig(
        dim=32, ffn_dim=64, layers=2, heads=2, text_dim=16, text_len=8, freq_dim=16
    )  # fmt: skip
    return _parts.Settings(
        dit, dataclasses.replace(VAEConfig.wan(), dim=8), TinyVAEConfig(),
        grid=(4, 4), side=64, lengths=(2, 3), repeats=1,
    )  # fmt: skip


def main(argv: list[str]) -> None:
    """Runs the parts and prints what each found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks device", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="everything at toy size")
    parser.add_argument("--limit", type=float, default=360, help="seconds; no part begins later")
    parser.add_argument("--out", type=Path, help="the JSON file (benchmarks/results/device-DATE)")
    options = parser.parse_args(argv)
    today = datetime.date.today()
    out = options.out or Path(__file__).parent / "results" / f"device-{today}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    first = jax.devices()[0]
    found: dict[str, Any] = {
        "date": str(today),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "toy": options.toy,
        "parts": {},
    }
    asked, begun = settings(options.toy), time.perf_counter()
    for name, part in PARTS.items():
        started = time.perf_counter()
        if started - begun > options.limit:
            result: dict[str, Any] = {"left out": f"{options.limit:.0f} s were over"}
        else:
            try:
                result = part(asked)
            except Exception as error:  # what one part can't do shall not cost the others
                result = {"failed": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        result["took_s"] = round(time.perf_counter() - started, 1)
        used = (first.memory_stats() or {}).get("peak_bytes_in_use")
        if used:
            result["peak_gb_so_far"] = round(used / 1e9, 2)
        found["parts"][name] = result
        with atomic(out) as file:
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {json.dumps(result)}", flush=True)
