"""What the comparisons with the originals share: distance, conversion, a torch model's arrays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.layout import Table, to_params
from tt_jax.checkpoint import abstract


def distance(out, reference) -> float:
    """Relative L2 distance, in float64."""
    out, reference = np.asarray(out, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(out - reference) / np.linalg.norm(reference))


def channels_last(x):
    """`[B, C, ...]` to `[B, ..., C]`."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def empty(part: str, config) -> dict:
    """Parameters of one of our models as shapes."""
    return nnx.to_pure_dict(nnx.state(abstract(part, config, np.float32)))


def converted(part: str, layout: Callable[[Any], Table], arrays, config, dtype=np.float32):
    """One of our models from a checkpoint's arrays, by the converter's own table."""
    graph, state = nnx.split(abstract(part, config, dtype))
    params = to_params(layout(config), arrays, nnx.to_pure_dict(state))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(x, dtype), params))


def arrays_of(model) -> dict[str, np.ndarray]:
    """A torch model's arrays, without a copy."""
    return {name: weight.numpy() for name, weight in model.state_dict().items()}
