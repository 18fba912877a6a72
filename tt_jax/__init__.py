"""TokenTrim in JAX: autoregressive video rollouts with a static-shape, prunable K/V context."""

from tt_jax import presets
from tt_jax.pipeline import load
from tt_jax.rollout import Rollout, rollout
from tt_jax.strategies.flowmo import FlowMo
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.trim import TokenTrim

__version__ = "0.1.0"

__all__ = [
    "FlowMo",
    "RollingForcing",
    "Rollout",
    "SelfForcing",
    "TokenTrim",
    "load",
    "presets",
    "rollout",
]
