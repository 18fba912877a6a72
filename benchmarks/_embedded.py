"""What the benchmarks of the embedded model share."""

from tt_jax import Pipeline

PROMPT = "a small red circle moving right slowly on a white background"


def grid_of(pipe: Pipeline) -> tuple[int, int]:
    """Height and width of the model's latents."""
    height, width = (side // pipe.config.vae.spatial_stride for side in pipe.config.size)
    return height, width
