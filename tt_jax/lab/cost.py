"""What a chunk of one video costs by its shapes alone: bytes of its cache, operations."""

import dataclasses
import functools

import jax
from flax import nnx
from jaxtyping import DTypeLike

from tt_jax._rollout import Strategy
from tt_jax.checkpoint import abstract
from tt_jax.models.configs import ModelConfig
from tt_jax.planning import operations
from tt_jax.planning.memory import nbytes
from tt_jax.trim.tokentrim import TokenTrim


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one video.

    Attributes:
        cache: bytes of all that is kept of the past.
        operations: of floating point in a chunk's passes, made once.
    """

    cache: int
    operations: int


@functools.cache
def chunk_cost(strategy: Strategy, config: ModelConfig, dtype: DTypeLike) -> Cost:
    """Counts from shapes what a chunk costs.

    Args:
        strategy: how chunks are made.
        config: of the model, in its own size.
        dtype: of its weights.

    Returns:
        The cost of one video's chunk, without decoding it.
    """
    graph, params = nnx.split(abstract("dit", config.dit, dtype))
    stride = config.vae.spatial_stride
    grid = (config.size[0] // stride, config.size[1] // stride)
    shape = (1, strategy.chunk, *grid, config.dit.channels)
    text = jax.ShapeDtypeStruct((1, config.dit.text_len, config.dit.text_dim), dtype)

    def step(params, text, state):
        dit, noise = nnx.merge(graph, params), strategy.noise(state, shape)
        return strategy.step(dit, dit.encode_text(text), state, noise, TokenTrim.off())

    # Kernels can't be counted: XLA's attention, which has the same operations, stands for them.
    with jax.default_device(jax.devices("cpu")[0]):
        state = jax.eval_shape(
            lambda params, key: strategy.start(nnx.merge(graph, params), 1, grid, key),
            params, jax.eval_shape(lambda: jax.random.key(0)),
        )  # fmt: skip
        counted = operations.cost(step, params, text, state)
    return Cost(nbytes(state.context), counted.operations)
