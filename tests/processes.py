"""The environment of a process that a test starts, and what it left behind."""

import os
from pathlib import Path

import av

import tt_jax

# Processes find the package wherever they run.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(tt_jax.__file__).parents[1])}


def frames(path):
    with av.open(path) as file:
        return sum(1 for _ in file.decode(video=0))


def listing(folder="."):
    return sorted(os.path.relpath(os.path.join(where, name), folder)
                  for where, _, names in os.walk(folder) for name in names)  # fmt: skip
