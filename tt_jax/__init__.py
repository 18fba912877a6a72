"""TokenTrim in JAX: autoregressive video rollouts with a static-shape, prunable K/V context."""

from tt_jax.pipeline import load
from tt_jax.rollout import Rollout, rollout
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.trim import TokenTrim

__version__ = "0.1.0"

__all__ = ["Rollout", "SelfForcing", "TokenTrim", "load", "rollout"]
