"""Whether the embedded model shows what it is asked for: `python -m tt_jax.shapes.check`.

Generates three seconds for each of the fixed prompts, judges the videos, and prints a table: the
share of prompts shown rightly, in per cent with 95 % Wilson intervals, beside the targets.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import tt_jax
from tt_jax.files import atomic
from tt_jax.shapes.checker import judge
from tt_jax.shapes.world import REGIMES, Scene, evaluation_prompts, render, sample_scene

TARGETS = {"colour": 95.0, "background": 95.0, "shape": 90.0, "count": 90.0, "direction": 85.0}
UNTARGETED = ("size", "speed", "camera")
PSNR_TARGET = 30.0  # dB
SECONDS = 3
BATCH = 16


@dataclass(frozen=True)
class Share:
    """`right` of `asked`, in per cent, with its 95 % Wilson interval."""

    right: int
    asked: int

    @property
    def percent(self) -> float:
        """The share; NaN if nothing was asked."""
        return 100 * self.right / self.asked if self.asked else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        if not self.asked:
            return 0.0, 100.0
        z, n, p = 1.959964, self.asked, self.right / self.asked
        middle = p + z * z / (2 * n)
        half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 100 / (1 + z * z / n)
        return float(scale * (middle - half)), float(scale * (middle + half))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.1f} [{low:.1f}, {high:.1f}]" if self.asked else "-"


def reconstruction(vae: nnx.Module, clips: int = 32, frames: int = 33) -> float:
    """Mean PSNR in dB of clips that training never saw, encoded and decoded."""
    rng = np.random.default_rng([2024, 1])
    through = nnx.jit(lambda vae, video: vae.decode(vae.encode(video)))
    values = []
    for _ in range(clips):
        video = render(sample_scene(rng), frames)[None].astype(np.float32) / 127.5 - 1
        error = np.mean((np.asarray(through(vae, video), np.float32) - video) ** 2)
        values.append(10 * np.log10(4 / error))
    return float(np.mean(values))


def verdicts(pipe: Any, prompts: Sequence[tuple[str, Scene]]) -> list[dict[str, bool]]:
    """What `judge` says of the pipeline's video for each prompt."""
    judged = []
    for start in range(0, len(prompts), BATCH):
        texts = [text for text, _ in prompts[start : start + BATCH]]
        # Batches have seeds of their own, or every batch would start from the same noise.
        made = pipe.generate(texts, seconds=SECONDS, seed=start, trim=tt_jax.TokenTrim.off())
        judged += [judge(video, text) for video, text in zip(made.frames, texts, strict=True)]
    return judged


def shares(
    judged: Sequence[dict[str, bool]], regimes: Sequence[str]
) -> dict[str, dict[str, Share]]:
    """For every fact its `Share` over "all" and over each regime's prompts."""
    result = {}
    for fact in (*TARGETS, *UNTARGETED):
        said = [(r, v[fact]) for r, v in zip(regimes, judged, strict=True) if fact in v]
        result[fact] = {"all": Share(sum(right for _, right in said), len(said))} | {
            name: Share(sum(v for r, v in said if r == name), sum(r == name for r, _ in said))
            for name in REGIMES
        }
    return result


def table(psnr: float, found: dict[str, dict[str, Share]]) -> str:
    """The table that is printed."""
    groups = ["all", *REGIMES]
    rows = [["", "target", *groups], ["VAE, dB", f">= {PSNR_TARGET:.0f}", f"{psnr:.1f}"]]
    for fact, by_group in found.items():
        target = f">= {TARGETS[fact]:.0f}" if fact in TARGETS else ""
        rows.append([f"{fact}, %", target, *(str(by_group[group]) for group in groups)])
    rows = [row + [""] * (len(rows[0]) - len(row)) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the check from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tt_jax.shapes.check", description=__doc__)
    parser.add_argument("--weights", default="shapes", help="a model's name or folder")
    parser.add_argument("--prompts", type=int, default=256, help="how many of the fixed prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here too")
    options = parser.parse_args(arguments)
    pipe = tt_jax.load(options.weights)
    prompts = evaluation_prompts(options.prompts)
    assert pipe.vae is not None  # it is loaded with its text encoder, so with all of it
    psnr = reconstruction(pipe.vae)
    judged = verdicts(pipe, prompts)
    found = shares(judged, [scene.regime for _, scene in prompts])
    print(table(psnr, found))
    if options.json:
        record = {
            "weights": options.weights,
            "psnr": psnr,
            "shares": {
                fact: {
                    group: {"right": s.right, "asked": s.asked, "interval": s.interval}
                    for group, s in by_group.items()
                }
                for fact, by_group in found.items()
            },
            "prompts": [
                {"prompt": text, "regime": scene.regime, "right": verdict}
                for (text, scene), verdict in zip(prompts, judged, strict=True)
            ],
        }
        with atomic(options.json) as aside:
            aside.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
