"""What a model is shown of its past: the K/V buffer, and one file for each published policy."""

from tt_jax.cache.policy import Policy
from tt_jax.cache.window import Window

__all__ = ["Policy", "Window"]
