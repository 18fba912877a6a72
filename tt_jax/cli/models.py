"""`tt-jax models`: the table of known models."""

import argparse
from collections.abc import Callable, Iterator
from typing import Any


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("models", help="published models that `tt-jax fetch` knows")
    parser.set_defaults(check=check, computes=False)


def check(args: argparse.Namespace) -> Callable[[], None]:
    """Nothing can be wrong; the work prints the table."""
    del args

    def work() -> None:
        from convert.known import KNOWN

        head = ("name", "levels", "chunk", "window", "sink", "cache", "weights in memory", "kind")
        rows = [head, *((name, *cells(name, known)) for name, known in KNOWN.items())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        notes = [[], *(about(known) for known in KNOWN.values())]
        for row, lines in zip(rows, notes, strict=True):
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(padded).rstrip())
            for line in lines:
                print(f"    {line}")
        print("Memory in bfloat16, without the text encoder; `tt-jax plan` says what a run needs.")

    return work


def cells(name: str, known: Any) -> tuple[str, ...]:
    """A row without its name.

    Args:
        name: the model's.
        known: what is known of it, a `convert.known.Known`.

    Returns:
        One text a column.
    """
    from tt_jax.checkpoint import shapes
    from tt_jax.models.configs import CONFIGS
    from tt_jax.models.tiny_vae import TinyVAEConfig

    def size(**parts: Any) -> str:
        leaves = (leaf for item in parts.items() for leaf in shapes(*item).values())
        return f"{sum(2 * leaf.size for leaf in leaves) / 1e9:.2f} GB"

    if "dit" not in known.published.files:
        return (*["-"] * 5, size(tiny_vae=TinyVAEConfig.wan2_1()), "tiny autoencoder")
    config = CONFIGS["wan2.1-14b" if "wan2.1-14b" in (name, known.base) else "wan2.1-1.3b"]
    ends = size(dit=config.dit, vae=config.vae), known.kind
    own = known.rollout
    if own is None:
        return (*["-"] * 5, *ends)

    def said(name: str) -> str:
        return "unknown" if name in own.unknown else str(getattr(own, name))

    levels = said("steps") if "steps" in own.unknown else " ".join(map(str, own.steps))
    if "shift" not in own.unknown:
        levels += ", as they stand" if own.shift is None else f", warped by {own.shift:g}"
    elif "steps" not in own.unknown:
        levels += ", warped or not: unknown"
    if own.strategy == "rolling-forcing":
        return levels, str(own.chunk), "21", "3", "rolling-forcing", *ends
    policy = "not here" if own.lacks else own.cache or "window"
    if "window" in own.unknown and not own.lacks:
        policy = "unknown"
    return levels, str(own.chunk), said("window"), said("sink"), policy, *ends


def about(known: Any) -> Iterator[str]:
    """The lines below a row."""
    published = known.published
    files = [x for part in published.files.values() for x in part if not x.endswith("config.json")]
    added = "".join(f" + {x}" for x in published.lora)
    disk = "" if known.disk is None else f", {known.disk / 1e9:.0f} GB"
    base = "" if known.base is None else f"; the rest is {known.base}'s"
    yield f"{published.repository}: {', '.join(files)}{added}{disk}{base}"
    yield f"weights: {known.weights}; licence: {known.licence}"
    if known.rollout is not None and known.rollout.lacks:
        yield f"trained with {known.rollout.lacks}, which isn't here"
