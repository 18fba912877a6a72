"""A tiny random model's folder, for tests of everything that loads one."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tt_jax.checkpoint import (
    PARTS,
    abstract,
    flatten,
    nest,
    quantised,
    save_part,
    shapes,
    write_config,
)
from tt_jax.models.configs import ModelConfig, RolloutConfig
from tt_jax.models.dit import DiT, DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.models.tokenizer import train_sentencepiece
from tt_jax.models.vae import VAEConfig
from tt_jax.shapes.language import evaluation_prompts

PROMPT = "a small red circle moving to the right slowly on a white background"

# 32x32 pixels, 4x4 tokens a frame; 4 frames to a latent frame.
TINY = ModelConfig(
    DiTConfig(dim=48, ffn_dim=64, layers=2, heads=2, channels=4, text_dim=16, text_len=40),
    VAEConfig(
        dim=4,
        latent_channels=4,
        dim_mult=(1, 1, 1),
        res_blocks=1,
        temporal_downsample=(True, True),
        mean=(0.0,) * 4,
        std=(1.0,) * 4,
    ),
    TextConfig(vocab=512, dim=16, attention_dim=16, ffn_dim=32, heads=2, layers=1, text_len=40),
    size=(32, 32),
    rollout=RolloutConfig(window=9),
)


def write_tiny_model(folder: Path, kind: str = "causal generator") -> Path:
    """Writes the model, with random weights, and returns its folder."""
    folder.mkdir(parents=True)
    write_config(folder, TINY, kind)
    captions = [caption for caption, _ in evaluation_prompts(256)]
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(captions))
    for part in PARTS:
        save_part(folder, part, random_params(part, getattr(TINY, part)))
    return folder


def random_params(part: str, config: Any) -> dict[str, Any]:
    """Weights of one part, float32, large enough for every one of them to matter."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(centre, 0.2, leaf.shape).astype(np.float32)

    shapes = nnx.to_pure_dict(nnx.state(abstract(part, config, np.float32)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_dit(config: DiTConfig) -> DiT:
    """A transformer with `random_params`, rounded if it shall be; nothing is compiled for it."""
    graph = nnx.graphdef(abstract("dit", config, np.float32))
    params = random_params("dit", dataclasses.replace(config, quantize=None))
    if config.quantize is not None:
        params = nest(dict(quantised(shapes("dit", config), flatten(params))))
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))
