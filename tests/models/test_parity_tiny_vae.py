"""The tiny autoencoder against arrays recorded from TAEHV, through the converter."""

import json

import jax
import numpy as np
import pytest
from parity import converted, distance
from safetensors.numpy import load_file

from convert import tiny_vae as names
from tt_jax.models.tiny_vae import TinyVAEConfig

pytestmark = pytest.mark.parity

CONFIGS = {"taew2_1": TinyVAEConfig.wan2_1(), "taew2_2": TinyVAEConfig.wan2_2()}


def weights(listed) -> dict[str, np.ndarray]:
    """The recording's weights, by the rule that its JSON states."""
    made = {}
    for i, (name, shape) in enumerate(listed):
        draw = np.random.default_rng([7, i]).standard_normal(shape, np.float32)
        scale = 0.05 if len(shape) == 1 else (1.4 / np.prod(shape[1:])) ** 0.5
        made[name] = draw * np.float32(scale)
    return made


@pytest.mark.parametrize("name", list(CONFIGS))
def test_decoder_and_encoder(name, golden, parity_record):
    about = json.loads((golden / f"{name}.json").read_text())
    recorded = {
        key: np.moveaxis(x, 2, -1) for key, x in load_file(golden / f"{name}.safetensors").items()
    }
    config = CONFIGS[name]
    tiny = converted("tiny_vae", names.native, weights(about["names"]), config)

    raw, _ = jax.jit(lambda tiny, x: tiny.decoder(x))(tiny, recorded["latents"])
    parity_record("tiny VAE decoder", "TAEHV, recorded", name, distance(raw, recorded["raw"]), 1e-5)

    decoded = jax.jit(lambda tiny, x: tiny.decode(x))(tiny, recorded["latents"])
    assert decoded.shape == recorded["decoded"].shape
    value = distance((np.asarray(decoded) + 1) / 2, recorded["decoded"])
    parity_record("tiny VAE decode", "TAEHV, recorded", name, value, 1e-5)

    encoded = jax.jit(lambda tiny, x: tiny.encode(x))(tiny, 2 * recorded["video"] - 1)
    value = distance(encoded, recorded["encoded"])
    parity_record("tiny VAE encode", "TAEHV, recorded", name, value, 1e-5)
