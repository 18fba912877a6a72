"""TokenTrim in JAX: autoregressive video rollouts with a static-shape, prunable K/V context.

From a prompt to a video:

    load            a model, "shapes" (embedded) or a converted checkpoint's folder: a `Pipeline`
    encode_prompts  prompts by a model's text encoder alone, for `load(model, text=False)`
    Pipeline        its generate, stream and encode_prompt (in `tt_jax.pipeline`, like what they
                    return: `Video`, `Chunk` and `State`)

The rollout as a function of arrays:

    rollout         latents chunk by chunk, jitted, with a record of each chunk: a `Rollout`
    Rollout         latents, drift, severity, threshold, triggered, pruned, kept_fraction, state

What it is made with, all of them frozen dataclasses:

    TokenTrim       when to intervene, which context entries to drop; `TokenTrim.off()` never does
    SelfForcing     one chunk at a time from noise, with a rolling context
    RollingForcing  a window of blocks at staggered noise levels
    FlowMo          guidance of either
    presets         every row of the paper's tables by name: `presets.preset(name)`

Further modules: `trim` (pruning policies), `drift` (how drift is measured), `video` and `plots`
(files and pictures), `plan` (whether a run fits), `evaluate` (measures of a video file), `lab`
(experiments); `convert`, a package of its own, reads published checkpoints.

Arrays are channels-last: latents `[batch, frame, height, width, channel]`, float32. Prompt
embeddings are `[batch, text_len, text_dim]`, keys typed ones (`jax.random.key`). A request that
can't be is a ValueError of one sentence.
"""

from tt_jax import presets
from tt_jax.pipeline import load
from tt_jax.prompts import encode_prompts
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
    "encode_prompts",
    "load",
    "presets",
    "rollout",
]
