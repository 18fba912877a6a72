"""The model behind the page: one chunk at a time, each with the settings that hold by then."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from tt_jax import records
from tt_jax.models.configs import FPS
from tt_jax.pipeline import Pipeline
from tt_jax.serve.protocol import Start, Steer
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.strategies.switch import switches
from tt_jax.trim.tokentrim import TokenTrim
from tt_jax.video import VideoState

SHARES = (0.05, 0.1, 0.2)  # that the page offers as p; each is a program of its own
PROMPT = "a large red circle moving right slowly on a white background"  # for the first compilation
REMEMBERED = 16  # prompts whose embeddings are kept


@dataclasses.dataclass(frozen=True)
class Made:
    """One chunk.

    Attributes:
        frames: what is new to see.
        drift: of each token against the chunk before; zeros where there is none.
        dropped: share of the past frames in which an intervention dropped the token.
        row: what TokenTrim saw and did, as in a record's `chunks`.
        switched: how the cache was switched to a new prompt that begins here; None without one.
        state: continue from here.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    drift: Float[np.ndarray, "rows columns"]
    dropped: Float[np.ndarray, "rows columns"]
    row: Mapping[str, Any]
    switched: str | None
    state: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """A loaded model and the ways in which it may be rolled out.

    Attributes:
        pipe: the model.
        strategies: by the name of each cache policy that the page offers, the first by default.
        size: height and width of the videos.
        about: what the record says of the model.
    """

    pipe: Pipeline
    strategies: Mapping[str, SelfForcing]
    size: tuple[int, int]
    about: Mapping[str, Any]

    @property
    def offer(self) -> dict[str, Any]:
        """What the page is told: sizes and choices, each's default first."""
        trim = TokenTrim()
        return {
            "model": self.about["name"],
            "size": list(self.size),
            "fps": FPS,
            "chunk": next(iter(self.strategies.values())).chunk * self._stride,
            "caches": list(self.strategies),
            "switches": {name: list(switches(own)) for name, own in self.strategies.items()},
            "shares": [trim.p, *(p for p in SHARES if p != trim.p)],
            "lam": float(trim.lam),
            "prompt": PROMPT if self.about["name"] == "shapes" else "",
        }

    @property
    def _stride(self) -> int:
        return self.pipe.config.vae.temporal_stride

    @functools.cached_property
    def _encode(self) -> Callable[[str], Float[Array, "1 l e"]]:
        return functools.lru_cache(REMEMBERED)(self.pipe.encode_prompt)

    def record(self, start: Start) -> dict[str, Any]:
        """What is known of a video from its beginning, for its record."""
        return {
            "command": "tt-jax serve",
            "strategy": {"live": records.settings(self.strategies[start.cache])},
            "trim": {"live": records.settings(TokenTrim(p=start.p, lam=start.lam))},
            "model": dict(self.about),
            "versions": records.versions(),
            "device": records.device(),
        }

    def memory(self) -> int | None:
        """Bytes in use on the device; None where it doesn't say."""
        return (jax.local_devices()[0].memory_stats() or {}).get("bytes_in_use")

    def warm(self) -> None:
        """Compiles all that a visitor may need, but for other shares p than the first."""
        for cache, strategy in self.strategies.items():
            start = Start(PROMPT, True, 2.0, "none", 0, self.offer["shares"][0], cache, False)
            state = self.make(start, start, None).state
            state = self.make(start, start, state).state
            for how in switches(strategy):
                if how != "none":
                    self.make(start, dataclasses.replace(start, switch=how), state, changed=True)
            self.make(start, start, None, picture=np.zeros((1, *self.size, 3), np.uint8))

    def make(
        self,
        start: Start,
        steer: Steer,
        state: VideoState | None,
        *,
        changed: bool = False,
        seed: int | None = None,
        picture: UInt8[np.ndarray, "1 h w 3"] | None = None,
    ) -> Made:
        """Makes a video's next chunk.

        Args:
            start: how the video began.
            steer: what holds now.
            state: after the chunk before; None for the first.
            changed: whether the chunk begins a new prompt.
            seed: of all noise from here on; None goes on with the video's own.
            picture: what the first chunk starts from, at the video's size.

        Returns:
            The chunk.

        Raises:
            ValueError: the request can't be, in one sentence.
            NonFiniteError: the chunk's latents aren't finite.
        """
        strategy = self.strategies[start.cache]
        trim = TokenTrim(p=start.p, lam=steer.lam if steer.trim else math.inf)
        text = self._encode(steer.prompt)
        how = steer.switch if changed else None
        frames = strategy.chunk * self._stride
        if state is None:
            # The first latent frame is one frame: the picture's, or the video's own.
            frames = frames + 1 if picture is not None else frames - self._stride + 1
            seed = start.seed
        chunks = self.pipe.stream(
            [(0, text)] if how is None else [(0, text, how)], seconds=frames / FPS, seed=seed,
            trim=trim, strategy=strategy, size=self.size if state is None else None,
            initial=picture if state is None else None, state=state,
        )  # fmt: skip
        (chunk,) = chunks
        numbers = chunk.rollout.numbers()
        numbers["dropped"] = (numbers["pruned"] > 0).mean(axis=(2, 3))
        return Made(
            chunk.frames[0],
            np.nan_to_num(numbers["drift"][0, 0]),
            numbers["pruned"][0, 0],
            records.measured(numbers, 0, 0),
            how,
            chunk.state,
        )
