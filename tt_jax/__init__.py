"""TokenTrim in JAX: autoregressive video rollouts with a static-shape, prunable K/V context.

From a prompt to a video:

    load            a model, "shapes" (embedded) or a converted checkpoint's folder: a `Pipeline`
    encode_prompts  prompts by a model's text encoder alone, for `load(model, text=False)`
    Pipeline        its generate, stream and encode_prompt give `Video`, `Chunk` and `VideoState`;
                    generate(out=...) writes frames as they are made and gives an `Overview`
    save_state      what a rollout or a video continues from, in a file; `load_state` reads it

The rollout as a function of arrays:

    rollout         latents chunk by chunk, jitted, with a record of each chunk: a `Rollout`
    stream          the same, each chunk as soon as it is finished
    switch          a state under another prompt; `Switch`, one within a stream
    lower           the program of a rollout, for devices that needn't be here
    Rollout         latents, the record of each chunk (drift, severity, threshold, triggered, ...),
                    state

What it is made with, all of them frozen dataclasses:

    TokenTrim       when to intervene, which context entries to drop; `TokenTrim.off()` never does
    SelfForcing     one chunk at a time from noise, with a rolling context
    RollingForcing  a window of blocks at staggered noise levels
    FlowMo          guidance of either
    preset          a row of the paper's tables by name

What can go wrong: ModelError (a folder that can't be used), NonFiniteError (a chunk that isn't
finite); a request that can't be is a ValueError of one sentence.

Further rooms: `cache` (policies: what is kept of the past and how it is read), `trim` (pruning
policies, drift), `media` and `plots` (files and pictures), `planning` (whether a run fits),
`evaluate` (measures of a video file), `lab` (experiments);
`convert`, a package of its own, reads published checkpoints.

Arrays are channels-last: latents `[batch, frame, height, width, channel]`, float32. Prompt
embeddings are `[batch, text_len, text_dim]`, keys typed ones (`jax.random.key`).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tt_jax._rollout import Rollout, lower, rollout, stream
    from tt_jax.errors import ModelError, NonFiniteError
    from tt_jax.overview import Overview
    from tt_jax.pipeline import Pipeline, load
    from tt_jax.prompts import encode_prompts
    from tt_jax.saved import load_state, save_state
    from tt_jax.strategies.flowmo import FlowMo
    from tt_jax.strategies.presets import preset
    from tt_jax.strategies.rolling_forcing import RollingForcing
    from tt_jax.strategies.self_forcing import SelfForcing
    from tt_jax.strategies.switch import Switch, switch
    from tt_jax.trim.tokentrim import TokenTrim
    from tt_jax.video import Chunk, Video, VideoState

__version__ = "0.1.0"

# Where each public name is defined. A module is imported when one of its names is asked for, so
# that `import tt_jax` is quick and the command line can refuse its arguments without JAX.
_ORIGIN = {
    "Chunk": "video",
    "FlowMo": "strategies.flowmo",
    "ModelError": "errors",
    "NonFiniteError": "errors",
    "Overview": "overview",
    "Pipeline": "pipeline",
    "RollingForcing": "strategies.rolling_forcing",
    "Rollout": "_rollout",
    "SelfForcing": "strategies.self_forcing",
    "Switch": "strategies.switch",
    "TokenTrim": "trim.tokentrim",
    "Video": "video",
    "VideoState": "video",
    "encode_prompts": "prompts",
    "load": "pipeline",
    "load_state": "saved",
    "lower": "_rollout",
    "preset": "strategies.presets",
    "rollout": "_rollout",
    "save_state": "saved",
    "stream": "_rollout",
    "switch": "strategies.switch",
}

__all__ = [
    "Chunk",
    "FlowMo",
    "ModelError",
    "NonFiniteError",
    "Overview",
    "Pipeline",
    "RollingForcing",
    "Rollout",
    "SelfForcing",
    "Switch",
    "TokenTrim",
    "Video",
    "VideoState",
    "encode_prompts",
    "load",
    "load_state",
    "lower",
    "preset",
    "rollout",
    "save_state",
    "stream",
    "switch",
]


def __getattr__(name: str) -> Any:
    if name not in _ORIGIN:
        raise AttributeError(f"module 'tt_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tt_jax.{_ORIGIN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
