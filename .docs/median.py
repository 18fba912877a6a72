"""The median case of a check, for the demo: `python .docs/median.py FILE`.

FILE is from `python -m tt_jax.shapes.check --weights shapes-young --seconds 30 --json FILE`. Of
its prompts whose objects are all right in the third second and that drift at all, the one is
printed whose drift is the median (the lower one of two). Drift is the share of seconds, from the
third on, in which an object is lost or has another colour, shape or size, mean over its objects.
Of several prompts with that share it is the first.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tt_jax.shapes.language import parse


def main() -> None:
    """Prints prompt and drift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    prompts = json.loads(parser.parse_args().file.read_text())["prompts"]
    right = [row for row in prompts if len(row["fates"]) == len(parse(row["prompt"]).objects)]
    drift = [np.mean([state != "kept" for one in row["fates"] for state in one]) for row in right]
    some = sorted(filter(None, drift))
    median = some[(len(some) - 1) // 2]
    print(right[drift.index(median)]["prompt"])
    print(f"{median:.2f}, the median of {len(some)} that drift, of {len(right)} right prompts")


if __name__ == "__main__":
    main()
