"""What a model is shown of its past: the K/V buffer, and one file for each published policy."""

from tt_jax.cache.deep_forcing import DeepForcing
from tt_jax.cache.ema_sink import EmaSink
from tt_jax.cache.fade_mem import FadeMem
from tt_jax.cache.infinity_rope import InfinityRope
from tt_jax.cache.long_live import LongLive
from tt_jax.cache.mem_rope import MemRope
from tt_jax.cache.named import NAMES, describe, parse
from tt_jax.cache.policy import Policy
from tt_jax.cache.relax_forcing import RelaxForcing
from tt_jax.cache.rolling_sink import RollingSink
from tt_jax.cache.tether_cache import TetherCache
from tt_jax.cache.window import Window

__all__ = [
    "NAMES",
    "DeepForcing",
    "EmaSink",
    "FadeMem",
    "InfinityRope",
    "LongLive",
    "MemRope",
    "Policy",
    "RelaxForcing",
    "RollingSink",
    "TetherCache",
    "Window",
    "describe",
    "parse",
]
