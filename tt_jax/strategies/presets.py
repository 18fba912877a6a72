"""The rows of the paper's Tables 1 and 2 (arXiv 2602.00268), each a strategy and a TokenTrim.

As in the paper, "+flowmo" guides every chunk, and "+tokentrim" has FlowMo guide the first chunk
unless its name says otherwise.
"""

import dataclasses
from typing import Any, NamedTuple

from tt_jax.cache.named import parse
from tt_jax.models.configs import STRATEGIES, ModelConfig, RolloutConfig
from tt_jax.strategies.flowmo import FlowMo
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.trim.tokentrim import TokenTrim

EXAMPLES = {"steps": "1000,750,500,250", "shift": "5", "window": "21", "sink": "0"}


class Preset(NamedTuple):
    """What `rollout` and `Pipeline.generate` take.

    Attributes:
        strategy: how chunks are made.
        trim: TokenTrim's settings.
    """

    strategy: SelfForcing | RollingForcing
    trim: TokenTrim


def _table() -> dict[str, tuple[str, FlowMo | None, TokenTrim]]:
    off, trim = TokenTrim.off(), TokenTrim()
    first, always = FlowMo("first"), FlowMo("all")
    rows: dict[str, tuple[str, FlowMo | None, TokenTrim]] = {}
    for host in STRATEGIES[::-1]:
        rows[host] = (host, None, off)
        rows[f"{host}+flowmo"] = (host, always, off)
        rows[f"{host}+tokentrim"] = (host, first, trim)
        if host == "rolling-forcing":
            rows[f"{host}+tokentrim-p05"] = (host, first, TokenTrim(p=0.05))
            rows[f"{host}+tokentrim-p20"] = (host, first, TokenTrim(p=0.2))
        rows[f"{host}+tokentrim-no-flowmo"] = (host, None, trim)
    return rows


ROWS = _table()
NAMES = tuple(ROWS)


def own(model: RolloutConfig, **settings: Any) -> SelfForcing | RollingForcing:
    """How a model was trained to be rolled out, but for some settings.

    Args:
        model: its `config.rollout`.
        settings: of `SelfForcing`, or of `RollingForcing` if that is the model's. A window or sink
            takes the place of the model's cache policy, and a cache policy theirs.

    Returns:
        The strategy.

    Raises:
        ValueError: nobody says of the model what isn't given either, or the settings can't be.
    """
    settings = {name: x for name, x in settings.items() if name != "cache" or x is not None}
    given = settings.keys() | ({"window", "sink"} if "cache" in settings else set())
    if missing := [name for name in model.unknown if name not in given]:
        options = " ".join(f"--{name} {EXAMPLES[name]}" for name in missing)
        raise ValueError(
            f"nobody says with which {' and '.join(missing)} this model was trained: give "
            f"{'them' if len(missing) > 1 else 'it'}, like {options}."
        )
    if model.strategy == "rolling-forcing":
        return RollingForcing(**{"steps": model.steps, "shift": model.shift, **settings})
    base: dict[str, Any] = {name: getattr(model, name) for name in ("steps", "shift", "chunk")}
    if "cache" not in settings:
        if model.cache is not None and not {"window", "sink"} & settings.keys():
            base["cache"] = parse(model.cache, model.window)
        else:
            base |= {"window": model.window, "sink": model.sink}
    return SelfForcing(**base | settings)


def preset(name: str, model: RolloutConfig = ModelConfig.rollout, **settings: Any) -> Preset:
    """A row of the paper's Tables 1 and 2.

    Args:
        name: one of `NAMES`.
        model: how a model is rolled out (its `config.rollout`).
        settings: of the strategy, others than the model's own.

    Returns:
        The strategy and TokenTrim's settings.

    Raises:
        ValueError: the name is unknown, or `own` refuses.
    """
    if name not in NAMES:
        raise ValueError(f"there is no preset {name!r}: give one of {', '.join(NAMES)}.")
    host, guidance, trim = ROWS[name]
    if host == model.strategy:
        return Preset(own(model, guidance=guidance, **settings), trim)
    # What another strategy was trained with is no use to this one, but the shift of its levels.
    other = RolloutConfig(shift=model.shift, strategy=host)
    if host == "rolling-forcing":
        other = dataclasses.replace(other, steps=RollingForcing.steps)
    return Preset(own(other, guidance=guidance, **settings), trim)
