"""`tt-jax env`: what a bug report needs of the machine, as plain text to paste."""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from tt_jax import __version__
from tt_jax.files import cache_folder

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "jaxtyping", "numpy", "av",
    "pillow", "safetensors", "matplotlib", "rich", "sentencepiece", "ftfy",
)  # fmt: skip
EXTRAS = (
    "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
    "torch", "huggingface-hub", "opencv-python-headless", "diffusers", "transformers",
)  # fmt: skip
# What changes how JAX runs; of what may hold a password or token, nothing.
VARIABLES = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE")


def add(commands: Any) -> None:
    """Registers the command."""
    parser = commands.add_parser("env", help="versions, devices, memory, caches, for bug reports")
    parser.add_argument("folders", nargs="*", metavar="MODEL", help="folders of models to describe")
    parser.set_defaults(check=check)


def check(args: argparse.Namespace) -> Callable[[], None]:
    """Nothing can be wrong with the request: what is wrong with the machine is told."""

    def work() -> None:
        for title, rows in (
            ("versions", versions()),
            ("devices", devices()),
            ("memory", host()),
            ("caches", caches()),
            ("models", models(["shapes", *args.folders])),
            ("settings", variables()),
        ):
            print(title)
            try:
                for name, value in rows:
                    print(f"  {anonymous(name):<24}  {anonymous(value)}")
            except ImportError as error:  # JAX's, where its pieces don't fit together
                print(f"  {'unknown':<24}  {anonymous(' '.join(str(error).split()))}")

    return work


def versions() -> Iterator[tuple[str, str]]:
    """Of Python, of what the package needs, and of what is there beside it."""
    yield "tt_jax", __version__
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", platform.platform()
    for name in (*PACKAGES, *EXTRAS):
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in PACKAGES:
                yield name, "missing"


def devices() -> Iterator[tuple[str, str]]:
    """The default back end's devices with their memory, or why there are none."""
    import jax

    try:
        found = jax.devices()
    except RuntimeError as error:  # a back end that doesn't start
        yield "none", " ".join(str(error).split())
        return
    yield "back end", " ".join(found[0].client.platform_version.split())
    for device in found:
        stats = device.memory_stats()
        limit = f", {size(stats['bytes_limit'])}" if stats and "bytes_limit" in stats else ""
        yield str(device), f"{device.device_kind}{limit}"


def host() -> Iterator[tuple[str, str]]:
    """Cores, main memory, and room on the disk of this folder."""
    from tt_jax.planning.memory import free_on_host

    yield "cores", str(os.cpu_count())
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield "main memory", f"{size(total)}, {size(free_on_host())} free"
    yield "disk, this folder", f"{size(shutil.disk_usage('.').free)} free"


def caches() -> Iterator[tuple[str, str]]:
    """Where compiled programs and prompts are kept, and how much."""
    programs, prompts = cache_folder("programs"), cache_folder("prompts")
    if programs is None or prompts is None:
        yield "none", "there is no home folder, and XDG_CACHE_HOME isn't set"
        return
    programs = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or programs)
    for name, folder in (("programs", programs), ("prompts", prompts)):
        yield name, f"{folder}: {contents(folder)}"


def models(names: list[str]) -> Iterator[tuple[str, str]]:
    """Each model's kind and parts, or what is wrong with its folder."""
    from tt_jax.checkpoint import find, inside, read_stored
    from tt_jax.errors import ModelError

    for name in names:
        try:
            folder = find(name)
            stored = read_stored(folder)
            parts = ", ".join(f"{part} {contents(inside(folder, part))}" for part in stored.parts)
            yield name, f"{stored.kind}; {parts}"
        except ModelError as error:
            yield name, str(error)


def variables() -> Iterator[tuple[str, str]]:
    """Environment variables that change how JAX runs."""
    found = [(name, value) for name, value in os.environ.items() if name.startswith(VARIABLES)]
    yield from sorted(found) or [("none", "")]


def contents(folder: Path) -> str:
    """How many files there are below a folder, and their size."""
    sizes = []
    for file in folder.rglob("*"):
        with suppress(OSError):  # gone since, or another user's
            if file.is_file():
                sizes.append(file.stat().st_size)
    return f"{len(sizes)} files, {size(sum(sizes))}" if sizes else "empty"


def size(count: float) -> str:
    """Bytes for the eye."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def anonymous(text: str) -> str:
    """Without the user's name, as far as the home folder's path gives it away."""
    home = os.path.expanduser("~")
    return text if home in ("~", "/") else text.replace(home, "~")
