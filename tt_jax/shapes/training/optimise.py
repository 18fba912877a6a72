"""An optimisation that can be stopped anywhere: optimizer, log, and a loop of scans of steps."""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key
from orbax.checkpoint import v1 as ocp

from tt_jax.shapes.training.recipe import Stage

Params = dict[str, Any]
# Parameters, data, key of the step: the loss, and figures to be logged.
Loss = Callable[[Params, Any, Key[Array, ""]], tuple[Float[Array, ""], dict[str, Array]]]
WARMUP = 0.02  # share of a stage
SAVE_SECONDS = 60


def rate_at(stage: Stage, progress: float) -> float:
    """The learning rate at a share of a stage: warm-up, plateau, linear fall to a twentieth.

    Args:
        stage: whose rate.
        progress: share of it that is over, 0 to 1.

    Returns:
        The rate.
    """
    fall = min(1.0, (1 - progress) / 0.5)
    return stage.rate * min(1.0, progress / WARMUP) * max(0.05, fall)


def optimizer(rate: float | Array) -> optax.GradientTransformation:
    """Muon on the kernels of convolutions and of stacked layers, Adam on the rest.

    On these few steps Muon is worth several times as many of Adam.
    """

    def dimensions(params: optax.Params) -> Any:
        def pick(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
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

    def __call__(self, stage: str, step: int, **values: float) -> None:
        """Adds one row per value: stage, step, name, value."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["stage", "step", "name", "value"])
            writer.writerows([stage, step, name, value] for name, value in values.items())
        print(stage, step, *(f"{name} {value:.4g}" for name, value in values.items()), flush=True)


def run_stage(
    name: str,
    stage: Stage,
    seconds: float,
    folder: Path,
    params: Params,
    loss: Loss,
    data: Callable[[Params, Key[Array, ""]], Any],
    log: Log,
    seed: int = 0,
) -> Params:
    """Optimises a loss for some seconds.

    A scan of steps runs without the host. Progress is time spent, so that a stage ends on time on
    any machine; it is saved under `folder/name` and gone on with from there.

    Args:
        name: of the stage.
        stage: its settings.
        seconds: its time, data and compilation included.
        folder: where progress is saved.
        params: to begin with.
        loss: of parameters, data and a key: the loss, and further figures to log.
        data: from averaged parameters and a key to what the loss takes, on the device; made anew
            every `stage.refresh` scans.
        log: gets each scan's figures.
        seed: of all noise, with the stage's name.

    Returns:
        The running average of the parameters.
    """

    def update(state: dict, data: Any, key: Array, rate: Array) -> tuple[dict, dict]:
        (value, extra), gradient = jax.value_and_grad(loss, has_aux=True)(
            state["params"], data, key
        )
        # Scaled by hand: what the optimizer was made with is static.
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction is 0.9 ** count
            change, opt = optimizer(1.0).update(gradient, state["opt"], state["params"])
        change = jax.tree.map(lambda x: rate * x, change)
        params = optax.apply_updates(state["params"], change)
        # A short memory at first: the initial weights must not linger in the average.
        step = state["step"].astype(jnp.float32)
        keep = jnp.minimum(stage.average, (1.0 + step) / (10.0 + step))
        mean = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, state["average"], params)
        state = {"params": params, "average": mean, "opt": opt, "step": state["step"] + 1}
        return state, {"loss": value, **extra}

    @jax.jit
    def scan(state: dict, data: Any, key: Array, rate: Array) -> tuple[dict, dict]:
        def step(state: dict, _: None) -> tuple[dict, dict]:
            return update(state, data, jax.random.fold_in(key, state["step"]), rate)

        state, figures = jax.lax.scan(step, state, None, stage.scan)
        return state, jax.tree.map(jnp.mean, figures)

    key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), hash_of(name))
    state = {
        "params": params,
        "average": params,
        "opt": optimizer(1.0).init(params),
        "step": jnp.zeros((), jnp.int32),
    }
    state, spent, scans = _restore(folder / name, state)
    held, began, saved = None, time.time() - spent, time.time()
    while spent < seconds:
        if held is None or (stage.refresh and scans % stage.refresh == 0):
            held = data(state["average"], jax.random.fold_in(key, 2**20 + scans))
        rate = rate_at(stage, max(spent / seconds, WARMUP / 2))  # else the first scan does nothing
        state, figures = scan(state, held, key, jnp.float32(rate))
        figures = {name: float(value) for name, value in figures.items()}  # waits for the device
        scans, spent = scans + 1, time.time() - began
        done = scans * stage.scan
        log(name, done, seconds=spent, rate=rate, **figures, samples=done * stage.batch)
        if time.time() - saved > SAVE_SECONDS or spent >= seconds:
            _save(folder / name, state, spent, scans)
            saved = time.time()
    return state["average"]


def hash_of(name: str) -> int:
    """A number for a stage's name, the same in every process."""
    return int.from_bytes(name.encode()[:4], "big")


def _save(folder: Path, state: dict, spent: float, scans: int) -> None:
    leaves = {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    leaves["clock"] = np.array([spent, scans])
    ocp.save(str(folder.absolute()), leaves, overwrite=True)


def _restore(folder: Path, state: dict) -> tuple[dict, float, int]:
    if not folder.is_dir():
        return state, 0.0, 0
    leaves, structure = jax.tree.flatten(state)
    names = {f"{i:05d}": leaf for i, leaf in enumerate(leaves)}
    stored = ocp.load(str(folder.absolute()), names | {"clock": np.zeros(2)})
    spent, scans = np.asarray(stored.pop("clock"))
    return jax.tree.unflatten(structure, [stored[name] for name in names]), spent, int(scans)
