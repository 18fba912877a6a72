"""`python -m benchmarks NAME`: one table each, measured in one run on this machine."""

import argparse
import importlib
import os
import pkgutil
import platform

import benchmarks


def machine() -> str:
    """What the figures were measured on, in a line."""
    import jax

    first = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{first.platform} ({first.device_kind}), {cores} cores, Python "
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
