"""An optimisation that can be stopped anywhere: schedule, optimizer, log, and the loop."""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from orbax.checkpoint import v1 as ocp

Params = dict[str, Any]


def schedule(rate: float, steps: int, warmup: int, decay: float) -> optax.Schedule:
    """Linear warm-up, a plateau, and a linear fall to a twentieth over the last `decay` of it."""
    fall = max(1, int(decay * steps))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, warmup),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, rate / 20, fall),
        ],
        [warmup, steps - fall],
    )


def optimizer(rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon on the kernels of convolutions and of stacked layers, Adam on the rest.

    On these few steps Muon is worth several times as many of Adam.
    """

    def dimensions(params: optax.Params) -> Any:
        def pick(path: tuple, leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
            if path[-1].key != "kernel" or leaf.ndim not in (3, 5) or min(leaf.shape[-2:]) < 8:
                return None
            inputs = 1 if leaf.ndim == 3 else (0, 1, 2, 3)
            return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1)

        return jax.tree_util.tree_map_with_path(pick, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            rate, adam_b2=0.98, consistent_rms=0.2, muon_weight_dimension_numbers=dimensions
        ),
    )


class Log:
    """Rows of numbers, appended to a CSV file and printed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.time()

    def __call__(self, stage: str, step: int, **values: float) -> None:
        """Adds one row per value: stage, step, seconds since this run's start, name, value."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "seconds", "name", "value"])
            for name, value in values.items():
                writer.writerow([stage, step, f"{time.time() - self.start:.0f}", name, value])
        line = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{stage} {step} {line}", flush=True)


def run_stage(
    name: str,
    folder: Path,
    params: Params,
    transform: optax.GradientTransformation,
    loss: Callable[..., tuple[Float[Array, ""], dict[str, Float[Array, ""]]]],
    batch: Callable[[int], tuple],
    *,
    steps: int,
    average: float,
    save_every: int,
    log: Log,
) -> Params:
    """Optimises `loss(params, *batch(step))` and returns the running average of the parameters.

    Saves every `save_every` steps under `folder/name/STEP` and goes on from the last one there, so
    that asking for fewer steps than were made gives the model at that age.
    """

    @jax.jit
    def update(state: dict, *data: Array) -> tuple[dict, dict]:
        (value, extra), gradient = jax.value_and_grad(loss, has_aux=True)(state["params"], *data)
        change, opt = transform.update(gradient, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], change)
        # A short memory at first: the initial weights must not linger in the average.
        rate = jnp.minimum(average, (1.0 + state["step"]) / (10.0 + state["step"]))
        mean = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, state["average"], params)
        state = {"params": params, "average": mean, "opt": opt, "step": state["step"] + 1}
        return state, {"loss": value, "gradient": optax.tree.norm(gradient), **extra}

    state = {
        "params": params,
        "average": params,
        "opt": transform.init(params),
        "step": jnp.zeros((), jnp.float32),
    }
    saves = folder / name
    done = sorted(int(path.name) for path in saves.glob("[0-9]*") if path.name.isdigit())
    done = [step for step in done if step <= steps]
    if done:
        leaves, structure = jax.tree.flatten(state)
        stored = ocp.load(str(saves / str(done[-1])), dict(enumerate_leaves(leaves)))
        state = jax.tree.unflatten(structure, [stored[key] for key in sorted(stored)])
    recent: list[dict] = []
    for step in range(done[-1] if done else 0, steps):
        state, figures = update(state, *batch(step))
        recent.append(figures)
        if (step + 1) % 25 == 0:
            names = sorted({key for row in recent for key in row})
            log(
                name,
                step + 1,
                **{k: float(np.mean([row[k] for row in recent if k in row])) for k in names},
            )
            recent = []
        if (step + 1) % save_every == 0 or step + 1 == steps:
            leaves = jax.tree.leaves(state)
            ocp.save(str(saves / str(step + 1)), dict(enumerate_leaves(leaves)), overwrite=True)
    return state["average"]


def enumerate_leaves(leaves: list[Array]) -> list[tuple[str, Array]]:
    """Leaves under sortable names: the optimizer's state has no stable names of its own."""
    return [(f"{i:05d}", leaf) for i, leaf in enumerate(leaves)]
