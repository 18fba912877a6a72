"""`python -m benchmarks NAME`: one table each, measured in one run on this machine."""

import argparse
import importlib
import os
import pkgutil
import platform
from pathlib import Path

import benchmarks

UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")  # as Linux calls them


def processor() -> str:
    """The CPU's model and its vector units."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.read_text(encoding="utf-8").splitlines())
    known = {name.strip(): value.strip() for name, _, value in lines}
    flags = known.get("flags", known.get("Features", "")).split()
    units = ", ".join(unit for unit in UNITS if unit in flags)
    return f"{known.get('model name', platform.machine())} ({units})"


def machine() -> str:
    """What the figures were measured on, in a line."""
    import jax

    first = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{first.platform} ({first.device_kind}); {processor()}, {cores} cores, Python "
        f"{platform.python_version()}, JAX {jax.__version__}"
    )


def main() -> None:
    """Runs the named benchmark."""
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    names = sorted(name for name in names if not name.startswith("_"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the benchmark's own")
    given = parser.parse_args()
    importlib.import_module(f"benchmarks.{given.name}").main(given.options)
    print(machine())


if __name__ == "__main__":
    main()
