"""The three networks of a text-to-video model, and the sizes of the known ones."""

import dataclasses

from tt_jax.models.dit import DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.models.vae import VAEConfig

FPS = 16  # frames a second of every model's videos


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of a whole model: transformer, VAE and text encoder.

    size: height and width of its videos in pixels. window: the latent frames that its attention
        spans in a rollout; how many it was trained with.
    """

    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig
    size: tuple[int, int] = (480, 832)
    window: int = 21


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
        window=9,
    ),
}
