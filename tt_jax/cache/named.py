"""Policies by their names, with sizes that suit a model's window: `deep-forcing:reuse=3`."""

import dataclasses
from typing import Any

from tt_jax.cache.deep_forcing import DeepForcing
from tt_jax.cache.ema_sink import EmaSink
from tt_jax.cache.fade_mem import FadeMem
from tt_jax.cache.infinity_rope import InfinityRope
from tt_jax.cache.long_live import LongLive
from tt_jax.cache.mem_rope import MemRope
from tt_jax.cache.policy import Policy
from tt_jax.cache.relax_forcing import RelaxForcing
from tt_jax.cache.rolling_sink import RollingSink
from tt_jax.cache.tether_cache import TetherCache
from tt_jax.cache.window import Window

NAMES: dict[str, type[Policy]] = {
    "window": Window,
    "infinity-rope": InfinityRope,
    "long-live": LongLive,
    "mem-rope": MemRope,
    "ema-sink": EmaSink,
    "rolling-sink": RollingSink,
    "relax-forcing": RelaxForcing,
    "deep-forcing": DeepForcing,
    "tether-cache": TetherCache,
    "fade-mem": FadeMem,
}
PUBLISHED = 21  # latent frames of the window that the published sizes belong to
RECENT = 4  # DeepForcing's recent frames; those of its window that a chunk takes: 3


def name_of(policy: Policy) -> str:
    """The name of a policy's kind, a key of `NAMES`."""
    return next(name for name, kind in NAMES.items() if type(policy) is kind)


def describe(policy: Policy) -> str:
    """A policy in words: its name, how many frames it spans and how many of them are sinks."""
    settings = (f for f in dataclasses.fields(policy) if f.name == "frames" or f.name == "sink")
    return ", ".join([name_of(policy), *(f"{f.name} {getattr(policy, f.name)}" for f in settings)])


def sizes(name: str, window: int) -> dict[str, int]:
    """Settings with which a policy suits a model that was trained on `window` latent frames.

    The published ones at 21. Below, whole windows are the model's own and shorter ones no longer
    than it; sinks and banks keep their share, as far as a chunk of three frames leaves room.

    Args:
        name: a key of `NAMES`.
        window: in latent frames.
    """

    def share(part: int, whole: int, frames: int) -> int:
        return max(1, round(part * frames / whole))

    short = min(12, window)
    chosen = share(2, PUBLISHED, window)
    sink = max(1, min(share(10, PUBLISHED, window), window - 3 - RECENT - chosen))
    return {
        "window": {"frames": window},
        "infinity-rope": {"frames": min(6, window)},
        "long-live": {"frames": short, "sink": share(3, 12, short)},
        "mem-rope": {"frames": short, "sink": share(3, 12, short)},
        "ema-sink": {"frames": min(9, window)},
        "rolling-sink": {"frames": window},
        "relax-forcing": {},
        "deep-forcing": {"frames": window, "sink": sink, "budget": sink + chosen + RECENT},
        "tether-cache": {"frames": window, "sink": share(3, PUBLISHED, window)},
        "fade-mem": {"frames": window, "bank": max(5, share(12, PUBLISHED, window))},
    }[name]


def parse(text: str, window: int = PUBLISHED) -> Policy:
    """The policy that a text says, its other settings from `sizes`.

    Args:
        text: `name` or `name:key=value,...`.
        window: latent frames that the model was trained on.

    Raises:
        ValueError: for an unknown name or setting, or a value that isn't of the setting's kind.
    """
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise ValueError(f"there is no cache policy {name!r}: give one of {', '.join(NAMES)}.")
    kind = NAMES[name]
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    settings: dict[str, Any] = dict(sizes(name, window))
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in fields:
            raise ValueError(f"{name} has no setting {key!r}: give one of {', '.join(fields)}.")
        settings[key] = _value(f"{name}'s {key}", value, type(fields[key]))
    return kind(**settings)


def _value(what: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{what} is true or false, not {text!r}.")
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise ValueError(f"{what} is {whole}, not {text!r}.") from None
