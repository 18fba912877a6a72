"""The three networks of a text-to-video model, and the sizes of the known ones."""

import dataclasses

from tt_jax.models.dit import DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.models.tiny_vae import TinyVAEConfig
from tt_jax.models.vae import VAEConfig

STRATEGIES = ("self-forcing", "rolling-forcing")
ASKED = ("steps", "shift", "window", "sink")  # what may be unknown of a model
FPS = 16  # frames a second of every model's videos


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How a model was trained to be rolled out; the defaults are Self Forcing's.

    Args:
        steps: nominal denoising steps of 1000.
        shift: of the schedule that turns them into noise levels; None if they are levels as they
            stand (step / 1000).
        chunk: latent frames of a chunk.
        window: latent frames that attention spans.
        sink: frames at the video's start that stay in it.
        strategy: "self-forcing", or "rolling-forcing", which has no window or sink of its own.
        cache: the cache policy, as `tt_jax.cache.parse` reads it; None for window and sink alone.
        unknown: which of these nobody says of the model: they are asked for.
        lacks: what it was trained with and isn't here, in words.

    Raises:
        ValueError: there is no such strategy, or nothing of such a name to be unknown.
    """

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float | None = 5.0
    chunk: int = 3
    window: int = 21
    sink: int = 0
    strategy: str = "self-forcing"
    cache: str | None = None
    unknown: tuple[str, ...] = ()
    lacks: str | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"there is no strategy {self.strategy!r}.")
        if wrong := set(self.unknown) - set(ASKED):
            raise ValueError(f"{min(wrong)!r} can't be unknown, only {', '.join(ASKED)}.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of a whole model.

    Args:
        dit: of the transformer.
        vae: of the VAE, or of the tiny one in its place.
        text: of the text encoder.
        size: height and width of its videos in pixels.
        rollout: how it was trained to be rolled out.
    """

    dit: DiTConfig
    vae: VAEConfig | TinyVAEConfig
    text: TextConfig
    size: tuple[int, int] = (480, 832)
    rollout: RolloutConfig = RolloutConfig()


def with_tiny_vae(config: ModelConfig) -> ModelConfig:
    """The same model with the tiny autoencoder of its latents."""
    if config.dit.channels != TinyVAEConfig.latent_channels:
        raise ValueError("there is no tiny autoencoder for this model's latents.")
    return dataclasses.replace(config, vae=TinyVAEConfig())


def with_bits(config: ModelConfig, quantize: str | None) -> ModelConfig:
    """The same model with weights of 8 bits.

    Args:
        config: of a model.
        quantize: "int8", for the transformer and the text encoder; None leaves it as it is.

    Raises:
        ValueError: for any other setting.
    """
    if quantize is None:
        return config
    dit, text = (dataclasses.replace(part, quantize=quantize) for part in (config.dit, config.text))
    return dataclasses.replace(config, dit=dit, text=text)


CONFIGS = {
    "wan2.1-1.3b": ModelConfig(DiTConfig.wan_1_3b(), VAEConfig(), TextConfig.umt5_xxl()),
    "wan2.1-14b": ModelConfig(DiTConfig.wan_14b(), VAEConfig(), TextConfig.umt5_xxl()),
    "shapes": ModelConfig(
        DiTConfig(dim=192, ffn_dim=512, layers=6, heads=3, channels=8, text_dim=96, text_len=40),
        VAEConfig(
            dim=16,
            latent_channels=8,
            dim_mult=(1, 2, 4),
            res_blocks=1,
            temporal_downsample=(True, True),
            mean=(0.0,) * 8,
            std=(1.0,) * 8,
        ),
        TextConfig(
            vocab=512, dim=96, attention_dim=96, ffn_dim=192, heads=3, layers=2, text_len=40
        ),
        size=(64, 64),
        rollout=RolloutConfig(shift=1.0, window=9),
    ),
}
