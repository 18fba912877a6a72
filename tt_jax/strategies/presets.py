"""The rows of the paper's Tables 1 and 2 (arXiv 2602.00268), each a strategy and a TokenTrim.

As in the paper, "+flowmo" guides every chunk, and "+tokentrim" has FlowMo guide the first chunk
unless its name says otherwise.
"""

from typing import NamedTuple

from tt_jax.models.configs import ModelConfig, RolloutConfig
from tt_jax.strategies.flowmo import FlowMo
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.trim.tokentrim import TokenTrim


class Preset(NamedTuple):
    """What `rollout` and `Pipeline.generate` take.

    Attributes:
        strategy: how chunks are made.
        trim: TokenTrim's settings.
    """

    strategy: SelfForcing | RollingForcing
    trim: TokenTrim


def _table(model: RolloutConfig) -> dict[str, Preset]:
    off, trim = TokenTrim.off(), TokenTrim()
    first, always = FlowMo("first"), FlowMo("all")

    def rolling(guidance: FlowMo | None, trim: TokenTrim) -> Preset:
        return Preset(RollingForcing(guidance=guidance, shift=model.shift), trim)

    def own(guidance: FlowMo | None, trim: TokenTrim) -> Preset:
        return Preset(SelfForcing(**vars(model), guidance=guidance), trim)

    return {
        "rolling-forcing": rolling(None, off),
        "rolling-forcing+flowmo": rolling(always, off),
        "rolling-forcing+tokentrim": rolling(first, trim),
        "rolling-forcing+tokentrim-p05": rolling(first, TokenTrim(p=0.05)),
        "rolling-forcing+tokentrim-p20": rolling(first, TokenTrim(p=0.2)),
        "rolling-forcing+tokentrim-no-flowmo": rolling(None, trim),
        "self-forcing": own(None, off),
        "self-forcing+flowmo": own(always, off),
        "self-forcing+tokentrim": own(first, trim),
        "self-forcing+tokentrim-no-flowmo": own(None, trim),
    }


NAMES = tuple(_table(ModelConfig.rollout))


def preset(name: str, model: RolloutConfig = ModelConfig.rollout) -> Preset:
    """A row of the paper's Tables 1 and 2.

    Args:
        name: one of `NAMES`.
        model: how a model is rolled out (its `config.rollout`).

    Returns:
        The strategy and TokenTrim's settings.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NAMES:
        raise ValueError(f"there is no preset {name!r}: give one of {', '.join(NAMES)}.")
    return _table(model)[name]
