"""TokenTrim (arXiv 2602.00268): when to intervene. Knows drift and masks, no model."""

import dataclasses
import functools
import math
import numbers
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real

from tt_jax.settings import real, truth, whole
from tt_jax.trim import drift as measures
from tt_jax.trim.policies import MEASURES, NEWEST, POLICIES, Policy, paper_drift


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenTrim:
    """The settings of TokenTrim (arXiv 2602.00268).

    All are static but `lam`, so that a sweep over it compiles once.

    Args:
        p: share of the N tokens of a frame that count as unstable, ceil(p N) of them; in (0, 1).
        lam: a chunk is abnormal when its severity exceeds mean + lam deviation of the accepted
            ones (equation 5). Infinite, it never is: the way to switch TokenTrim off and on again
            within a video, or within one compiled program. A number, or an array of shape ().
        warmup: number of severities to see before the first test, >= 1. The first severity exists
            at the second chunk, so that with 2 the first test is at the fourth.
        retries: how often an abnormal chunk is generated again; each further attempt also drops
            the unstable set of the attempt before it. 0 only measures.
        when: "final" measures the finished chunk (Algorithm 1); "first_step" the x0 prediction of
            the first denoising step, so that an intervention costs one pass instead of a chunk.
            Predictions are compared with predictions: the first chunk after given frames then has
            nothing like itself to be compared with, and isn't measured.
        select: which entries to drop, a name in `trim.POLICIES` or a function of your own,
            `(drift [B, N], entry_drift [B, S, N], key [B]) -> drop [B, S, N]`, float32 to bool.
            Drift, and so the trigger, is the paper's, but for "motion" (against the nearest of the
            3x3 places) and "novelty" (against the nearest valid token of the context, finished
            frames under either `when`), which drop the most drifting positions by their own
            measure; "newest" goes by novelty and drops them from the frames of the chunk before
            alone, so that sound older entries stay.
        accept: "always" keeps the last attempt and its pruned context (the paper); "better" keeps
            whichever attempt drifts least, with the context it was made from; "consistent" the one
            that fits what the last attempt's context still holds best: least novelty of the new
            tokens and least absence of the old ones together (`trim.strangeness`), so that an
            attempt isn't kept for having lost what moved.
        statistics: "moments", the mean and deviation of all accepted severities (the paper), or
            "robust", median and scaled median absolute deviation of the last 64, which forget
            the first severity, several times the later ones.
        resample_noise: draw fresh noise for a further attempt instead of using the first one's.
        prune_sink: let the policy drop entries of sink frames too.

    Raises:
        ValueError: a setting is of another type or out of its range, or a name unknown.
    """

    p: float = dataclasses.field(default=0.1, metadata={"static": True})
    lam: float | Real[Array, ""] = 2.0
    warmup: int = dataclasses.field(default=2, metadata={"static": True})
    retries: int = dataclasses.field(default=1, metadata={"static": True})
    when: Literal["final", "first_step"] = dataclasses.field(
        default="final", metadata={"static": True}
    )
    select: str | Policy = dataclasses.field(default="top", metadata={"static": True})
    accept: Literal["always", "better", "consistent"] = dataclasses.field(
        default="always", metadata={"static": True}
    )
    statistics: Literal["moments", "robust"] = dataclasses.field(
        default="moments", metadata={"static": True}
    )
    resample_noise: bool = dataclasses.field(default=False, metadata={"static": True})
    prune_sink: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        if isinstance(self.p, numbers.Real) and not 0 < self.p < 1:
            raise ValueError(f"p is the share of tokens to drop, between 0 and 1, not {self.p}.")
        plain = {
            "p": real("p", self.p),
            "warmup": whole("warmup", self.warmup, 1),
            "retries": whole("retries", self.retries, 0),
            "resample_noise": truth("resample_noise", self.resample_noise),
            "prune_sink": truth("prune_sink", self.prune_sink),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        # Arrays, tracers and what JAX puts in their place are looked at in a rollout.
        number = isinstance(self.lam, numbers.Real)
        if isinstance(self.lam, str) or (number and not self.lam > -math.inf):
            raise ValueError(f"lam must be a number, which may be infinite, not {self.lam!r}.")
        if self.when not in ("final", "first_step"):
            raise ValueError(f'when is "final" or "first_step", not {self.when!r}.')
        if self.accept not in ("always", "better", "consistent"):
            raise ValueError(f'accept is "always", "better" or "consistent", not {self.accept!r}.')
        if self.statistics not in ("moments", "robust"):
            raise ValueError(f'statistics is "moments" or "robust", not {self.statistics!r}.')
        named = isinstance(self.select, str) and self.select in POLICIES
        if not named and not callable(self.select):
            names = ", ".join(POLICIES)
            raise ValueError(f"there is no policy {self.select!r}: select one of {names}.")
        if self.select == "none" and self.retries and not self.resample_noise:
            raise ValueError(
                'select="none" drops nothing, so the same noise gives the same chunk: '
                "set resample_noise=True."
            )

    @classmethod
    def off(cls) -> "TokenTrim":
        """Measures drift and never intervenes.

        Returns:
            Settings that give the plain strategy, bit for bit.
        """
        return cls(retries=0)

    def count(self, tokens: int) -> int:
        """Size of the unstable set.

        Args:
            tokens: N, the tokens of a frame.

        Returns:
            ceil(p N).
        """
        # The margin keeps ceil(0.07 * 100) from being 8.
        return math.ceil(self.p * tokens - 1e-9)

    def measure(
        self,
        tokens: Float[Array, "b f n d"],
        before: Float[Array, "b n d"],
        context: Float[Array, "b s n d"],
        valid: Bool[Array, "b s n"],
        grid: tuple[int, int],
    ) -> Float[Array, "b n"]:
        """Token drift of a chunk, without gradient.

        Args:
            tokens: of the chunk's frames.
            before: summary of the chunk before it.
            context: tokens of the cached frames.
            valid: which of them count: written, and not pruned before this chunk.
            grid: rows and columns of the N tokens.

        Returns:
            Distances in latent values, by the measure of `select`.
        """
        own = MEASURES.get(self.select) if isinstance(self.select, str) else None
        arrays = jax.lax.stop_gradient((tokens, before, context))
        return (own or paper_drift)(*arrays, valid, grid)

    def strangeness(
        self,
        tokens: Float[Array, "b f n d"],
        context: Float[Array, "b s n d"],
        valid: Bool[Array, "b s n"],
    ) -> Float[Array, " b"]:
        """How badly a chunk fits a context: what `accept="consistent"` compares.

        Args:
            tokens: of the chunk's frames.
            context: tokens of the cached frames.
            valid: which of them count.

        Returns:
            Mean novelty of the p N most novel positions and mean absence of the p N most absent.
        """
        count = self.count(tokens.shape[2])
        novel = measures.novelty(tokens, context, valid)
        absent = measures.absence(tokens, context, valid)
        return measures.severity(novel, count) + measures.severity(absent, count)

    def may_drop(
        self, slots: Bool[Array, " s"], frame: Int[Array, " s"], size: int
    ) -> Bool[Array, " s"]:
        """The slots that `select` drops entries from.

        Args:
            slots: those that may lose entries at all.
            frame: index of the frame in each slot, -1 where there is none.
            size: frames of a chunk.

        Returns:
            `slots`, or those of them that hold the last `size` frames.
        """
        if self.select in NEWEST:
            return slots & (frame > jnp.max(frame) - size)
        return slots

    def drop(
        self,
        drift: Float[Array, "b n"],
        entry_drift: Float[Array, "b s n"],
        key: Key[Array, " b"],
    ) -> Bool[Array, "b s n"]:
        """The entries that the policy selects, before sinks and empty slots are exempted.

        Args:
            drift: token drift of the attempt before.
            entry_drift: each cached token's distance to that attempt's summary.
            key: one for each sample.

        Returns:
            True where an entry is to be dropped.

        Raises:
            ValueError: a policy of one's own returns something else than such truth values.
        """
        if callable(self.select):
            drop = self.select(drift, entry_drift, key)
            got = [np.dtype(getattr(drop, "dtype", object)).name, [*np.shape(drop)]]
            if got != ["bool", [*entry_drift.shape]]:
                name = getattr(self.select, "__name__", repr(self.select))
                raise ValueError(
                    f"the policy {name} must return an array of bool {[*entry_drift.shape]}, one "
                    f"truth value for each context entry, not {got[0]} {got[1]}."
                )
            return drop
        policy = functools.partial(POLICIES[self.select], count=self.count(drift.shape[-1]))
        return policy(drift, entry_drift, key)
