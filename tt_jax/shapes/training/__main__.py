"""`python -m tt_jax.shapes.training FOLDER`: trains the embedded model, or goes on with it."""

import argparse
import dataclasses
from pathlib import Path

from tt_jax.shapes.training.recipe import STAGES, Recipe, toy, toy_config
from tt_jax.shapes.training.run import train

parser = argparse.ArgumentParser(prog="python -m tt_jax.shapes.training", description=__doc__)
parser.add_argument("folder", type=Path, help="where checkpoints, log and models go")
parser.add_argument("--minutes", type=float, default=10.0, help="of all stages together")
parser.add_argument("--start", default="", help="a model, by name or folder, to go on with")
parser.add_argument("--toy", action="store_true", help="a tiny model, a few steps of each stage")
parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="only these")
options = parser.parse_args()
recipe = toy() if options.toy else Recipe()
config = toy_config() if options.toy else None
minutes = 0.01 if options.toy else options.minutes
recipe = dataclasses.replace(recipe, start=options.start)
print(train(recipe, minutes, options.folder, config, options.stages))
