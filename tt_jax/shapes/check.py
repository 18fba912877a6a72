"""Whether the embedded model shows what it is asked for: `python -m tt_jax.shapes.check`.

Generates three seconds for each of the fixed prompts, judges the videos, and prints a table: the
share of prompts shown rightly, in per cent with 95 % Wilson intervals, beside the targets and the
ceiling, which is what the VAE's own reconstruction of the rendered truth gets. With more seconds it
also prints what the last three of them have kept.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import UInt8

import tt_jax
from tt_jax.files import atomic
from tt_jax.shapes.checker import Measurement, measure
from tt_jax.shapes.language import evaluation_prompts, parse
from tt_jax.shapes.verdict import errors, judge, moving, object_errors
from tt_jax.shapes.world import FPS, REGIMES, Scene, render
from tt_jax.strategies.presets import preset

TARGETS = {"colour": 97.0, "background": 97.0, "shape": 92.0, "count": 93.0, "direction": 88.0}
UNTARGETED = ("size", "speed", "camera")
PSNR_TARGET = 30.0  # dB
SECONDS = 3
OFF_COLOUR = 0.15  # distance of RGB in [0, 1] from which on a colour is another
LONG = 10  # seconds from which on a video's end is measured too
HOSTS = ("self-forcing", "rolling-forcing")
BATCH = 16


@dataclass(frozen=True)
class Share:
    """A share of what was asked.

    Args:
        right: how many were as asked.
        asked: how many there are.
    """

    right: int
    asked: int

    @property
    def percent(self) -> float:
        """The share in per cent; NaN if nothing was asked."""
        return 100 * self.right / self.asked if self.asked else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % Wilson interval, in per cent."""
        if not self.asked:
            return 0.0, 100.0
        z, n, p = 1.959964, self.asked, self.right / self.asked
        middle = p + z * z / (2 * n)
        half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 100 / (1 + z * z / n)
        # Rounding must not lead out of [0, 100].
        return max(0.0, float(scale * (middle - half))), min(100.0, float(scale * (middle + half)))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.1f} [{low:.1f}, {high:.1f}]" if self.asked else "-"


def ceiling(
    vae: nnx.Module, prompts: Sequence[tuple[str, Scene]]
) -> tuple[list[dict[str, bool]], float]:
    """What the VAE alone lets through: the rendered truth, encoded and decoded.

    Args:
        vae: the model's.
        prompts: captions and their scenes.

    Returns:
        What `judge` says of each reconstruction, and their mean PSNR in dB.
    """
    through = nnx.jit(lambda vae, video: vae.decode(vae.encode(video)))
    judged, psnr = [], []
    for text, scene in prompts:
        # One frame more, since the VAE takes one and then four at a time.
        video = render(scene, SECONDS * FPS + 1).astype(np.float32) / 127.5 - 1
        found = np.asarray(through(vae, video[None]), np.float32)[0]
        psnr.append(10 * np.log10(4 / np.mean((found - video) ** 2)))
        pixels = np.clip((found + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
        judged.append(judge(pixels[:-1], text))
    return judged, float(np.mean(psnr))


def videos(
    pipe: Any, prompts: Sequence[tuple[str, Scene]], seconds: float = SECONDS, host: str = HOSTS[0]
) -> Iterator[tuple[str, UInt8[np.ndarray, "t 64 64 3"]]]:
    """Makes a video for each prompt, a batch at a time, without TokenTrim.

    Args:
        pipe: the model's `Pipeline`.
        prompts: captions and their scenes.
        seconds: of each video.
        host: one of `HOSTS`.

    Yields:
        Each caption and its video.
    """
    strategy = preset(host, pipe.config.rollout).strategy
    for start in range(0, len(prompts), BATCH):
        texts = [text for text, _ in prompts[start : start + BATCH]]
        # Batches have seeds of their own, or every batch would start from the same noise.
        made = pipe.generate(
            texts, seconds=seconds, seed=start, trim=tt_jax.TokenTrim.off(), strategy=strategy
        )
        yield from zip(texts, made.frames, strict=True)


def kept(seen: Measurement, prompt: str) -> dict[str, float]:
    """What the last three seconds of a long video have kept.

    Args:
        seen: of the whole video.
        prompt: what it was to show.

    Returns:
        Share of objects that are `lost`, share of those asked to move that are `moving` (NaN if
        none is), and their distance of `colour`, RGB in [0, 1] (NaN if all are lost).
    """
    end = seen.cut(slice(-SECONDS * FPS, None))
    off = errors(end, prompt)
    asked = sum(thing.speed is not None for thing in parse(prompt).objects)
    colour = off["colour"][~np.isnan(off["colour"])]
    return {
        "lost": float(off["lost"].mean()),
        "moving": min(moving(end), asked) / asked if asked else np.nan,
        "colour": float(colour.mean()) if len(colour) else np.nan,
    }


def fates(seen: Measurement, prompt: str) -> list[list[str]]:
    """What becomes of the objects that a video shows rightly at first.

    Args:
        seen: of the whole video.
        prompt: what it was to show.

    Returns:
        For each object that is as asked in the third second, its state in every second from then
        on: "kept", "lost", or "changed", which is a colour more than 0.15 away (RGB in [0, 1]),
        another shape, or half or twice the size.
    """
    curves = object_errors(seen, prompt)
    off = curves["colour"] > OFF_COLOUR, curves["shape"] > 0.5, curves["size"] >= 1
    state = np.where(np.any(off, axis=0), "changed", "kept")
    state[curves["lost"] > 0.5] = "lost"
    begin = SECONDS - 1
    return [list(map(str, column[begin:])) for column in state.T if column[begin] == "kept"]


def fate_table(found: Sequence[list[str]], seconds: int) -> str:
    """The curves of `fates` as lines of text, at every tenth second and the last.

    Args:
        found: each object's states from the third second on.
        seconds: length of the videos.

    Returns:
        A line for "changed" and one for "lost", in per cent with 95 % Wilson intervals.
    """
    whole = [SECONDS, *range(10, seconds, 10), seconds]
    lines = [f"of {len(found)} objects right at second {SECONDS}, by second {whole}:"]
    for name in ("changed", "lost"):
        at = [[states[second - SECONDS] == name for states in found] for second in whole]
        lines.append(f"{name}, %: " + "  ".join(str(Share(sum(x), len(x))) for x in at))
    return "\n".join(lines)


def shares(
    judged: Sequence[dict[str, bool]], regimes: Sequence[str]
) -> dict[str, dict[str, Share]]:
    """Counts what was shown rightly.

    Args:
        judged: what `judge` said of each prompt.
        regimes: each prompt's, in the same order.

    Returns:
        For every fact its `Share` over "all" and over each regime's prompts.
    """
    result = {}
    for fact in (*TARGETS, *UNTARGETED):
        said = [(r, v[fact]) for r, v in zip(regimes, judged, strict=True) if fact in v]
        result[fact] = {"all": Share(sum(right for _, right in said), len(said))} | {
            name: Share(sum(v for r, v in said if r == name), sum(r == name for r, _ in said))
            for name in REGIMES
        }
    return result


def table(
    psnr: float, best: dict[str, dict[str, Share]], found: dict[str, dict[str, Share]]
) -> str:
    """The table that is printed.

    Args:
        psnr: of the VAE, in dB.
        best: the ceiling's shares.
        found: the model's shares.

    Returns:
        Lines of text.
    """
    groups = ["all", *REGIMES]
    rows = [["", "target", "ceiling", *groups]]
    rows += [["VAE, dB", f">= {PSNR_TARGET:.0f}", f"{psnr:.1f}"]]
    for fact, by_group in found.items():
        target = f">= {TARGETS[fact]:.0f}" if fact in TARGETS else ""
        top = f"{best[fact]['all'].percent:.1f}"
        rows.append([f"{fact}, %", target, top, *(str(by_group[group]) for group in groups)])
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
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each video")
    parser.add_argument("--host", choices=HOSTS, default=HOSTS[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here too")
    options = parser.parse_args(arguments)
    pipe = tt_jax.load(options.weights)
    prompts = evaluation_prompts(options.prompts)
    regimes = [scene.regime for _, scene in prompts]
    assert pipe.vae is not None  # it is loaded with its text encoder, so with all of it
    tops, psnr = ceiling(pipe.vae, prompts)
    judged, ends, states = [], [], []
    for text, video in videos(pipe, prompts, options.seconds, options.host):
        seen = measure(video)
        judged.append(judge(seen, text))
        if options.seconds >= LONG:
            ends.append(kept(seen, text))
            states.append(fates(seen, text))
    best, found = shares(tops, regimes), shares(judged, regimes)
    print(table(psnr, best, found))
    end = {name: float(np.nanmean([row[name] for row in ends])) for name in (ends or [{}])[0]}
    if end:
        print(
            f"last {SECONDS} of {options.seconds:g} s: {100 * end['lost']:.1f} % of objects lost, "
            f"{100 * end['moving']:.1f} % of those asked to move still moving, "
            f"colours off by {end['colour']:.3f}"
        )
        print(fate_table([one for prompt in states for one in prompt], int(options.seconds)))
    if options.json:
        record = {
            "weights": options.weights,
            "seconds": options.seconds,
            "host": options.host,
            "psnr": psnr,
            "ceiling": {fact: by_group["all"].percent for fact, by_group in best.items()},
            "end": end,
            "shares": {
                fact: {
                    group: {"right": s.right, "asked": s.asked, "interval": s.interval}
                    for group, s in by_group.items()
                }
                for fact, by_group in found.items()
            },
            "prompts": [
                {"prompt": text, "regime": scene.regime, "right": verdict, "fates": of}
                for (text, scene), verdict, of in zip(
                    prompts, judged, states or [[]] * len(judged), strict=True
                )
            ],
        }
        with atomic(options.json) as aside:
            aside.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
