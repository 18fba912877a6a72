"""Everything that decides what comes of the training, beside the model's sizes."""

import dataclasses

import numpy as np

from tt_jax.models.configs import CONFIGS, ModelConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: how much of the time it gets, and how it is optimised.

    Attributes:
        share: of the minutes that are given.
        batch: samples a step.
        rate: the greatest learning rate, held for the first half of the stage, then falling
            linearly to a twentieth.
        average: of the parameters, what it keeps of itself per step.
        scan: steps that run without the host.
        refresh: scans after which the data are made anew; 0 keeps them.
    """

    share: float
    batch: int
    rate: float
    average: float
    scan: int
    refresh: int = 0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The stages and what they share.

    Latents are float16. Levels are those that the model is rolled out at, of Self Forcing and of
    Rolling Forcing; the first, pure noise, is where captions decide, so it is drawn most often.

    Attributes:
        vae: the VAE by itself.
        reading: the text encoder by itself.
        pictures: single latent frames.
        clips: chunks after clean ones.
        rollouts: chunks after the model's own.
        seed: of all noise.
        start: a model, by name or folder, that is gone on with.
        crop: pixels along a side of what the VAE is shown at once.
        vae_frames: frames of that.
        kl: weight of the VAE's KL divergence.
        openings: first chunks held at a time, for pictures and openings.
        clip_pool: clips held at a time.
        clip_chunks: chunks of a clip.
        own_pool: own rollouts held at a time.
        own_chunks: chunks of a rollout, of which `clip_chunks` are the past.
        own_pasts: pasts that each of them gives.
        encode: clips that are rendered and encoded at once.
        openings_share: first chunks in a step for each clip.
        pairs: share of scenes with two objects, from which most is to be learned.
        hard: share of samples that are drawn by how hard their scenes are.
        own: share of samples that are followed along the model's own denoising.
        wobble: greatest deviation of the noise that is added to clean context.
        levels: of noise.
        odds: of each level.
    """

    vae: Stage = Stage(0.12, 8, 4e-3, 0.98, 50)
    reading: Stage = Stage(0.06, 128, 2e-3, 0.95, 100)
    pictures: Stage = Stage(0.30, 256, 1.5e-3, 0.99, 50, 8)
    clips: Stage = Stage(0.37, 16, 1.5e-3, 0.99, 25, 8)
    rollouts: Stage = Stage(0.15, 16, 8e-4, 0.99, 25, 4)
    seed: int = 0
    start: str = ""
    crop: int = 32
    vae_frames: int = 33
    kl: float = 5e-4
    openings: int = 16384
    clip_pool: int = 1024
    clip_chunks: int = 6
    own_pool: int = 128
    own_chunks: int = 40
    own_pasts: int = 3
    encode: int = 32
    openings_share: int = 6
    pairs: float = 0.6
    hard: float = 0.7
    own: float = 0.4
    wobble: float = 0.2
    levels: tuple[float, ...] = (1.0, 0.8, 0.75, 0.6, 0.5, 0.4, 0.25, 0.2)
    odds: tuple[float, ...] = (0.36, 0.06, 0.2, 0.06, 0.14, 0.05, 0.09, 0.04)

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.odds) or not np.isclose(sum(self.odds), 1):
            raise ValueError("every level needs its odds, and these must sum to 1.")


def toy() -> Recipe:
    """All stages within a minute, on anything: whether they run, not whether they learn."""
    small = {"batch": 2, "scan": 1, "refresh": 1}
    stages = {name: dataclasses.replace(getattr(Recipe(), name), **small) for name in STAGES}
    return dataclasses.replace(
        Recipe(), **stages, openings=4, clip_pool=2, clip_chunks=2, own_pool=2, own_chunks=3,
        encode=2, openings_share=1, vae_frames=5, crop=16,
    )  # fmt: skip


def toy_config() -> ModelConfig:
    """A model that learns nothing, for `toy`."""
    known = CONFIGS["shapes"]
    return dataclasses.replace(
        known,
        dit=dataclasses.replace(known.dit, dim=24, ffn_dim=32, layers=2, heads=2, text_dim=16),
        vae=dataclasses.replace(known.vae, dim=4, dim_mult=(1, 1, 1)),
        text=dataclasses.replace(
            known.text, dim=16, attention_dim=16, ffn_dim=32, heads=2, layers=1
        ),
    )


STAGES = ("vae", "reading", "pictures", "clips", "rollouts")
