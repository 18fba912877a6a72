"""The tiny autoencoder: frames where the full VAE has them, streaming, from file to video."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import BY_NAME, NARROW, random_tensors, save
from flax import nnx
from models import PROMPT, random_params

import tt_jax
from convert.__main__ import main as convert
from tt_jax.checkpoint import abstract, read_stored, save_part, write_stored
from tt_jax.cli.main import main as cli
from tt_jax.models.tiny_vae import TinyVAE, TinyVAEConfig
from tt_jax.verify import verify

# Four channels and strides of 4, as the tiny random model has them.
SMALL = TinyVAEConfig(4, (6, 5, 4), blocks=2, temporal_upsample=(True, True))


def random_tiny(config: TinyVAEConfig) -> TinyVAE:
    graph = nnx.graphdef(abstract("tiny_vae", config, np.float32))
    return nnx.merge(graph, jax.tree.map(jnp.asarray, random_params("tiny_vae", config)))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def distance(out, reference):
    return np.linalg.norm(np.asarray(out) - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        (TinyVAEConfig.wan2_1(), [(4, 1), (5, 2)]),
        (TinyVAEConfig.wan2_2(), [(1, 1), (11, 3)]),
    ],
)
def test_frames_are_counted_as_the_full_vae_counts_them(config, counts):
    tiny = abstract("tiny_vae", config, np.float32)
    side, stride = config.spatial_stride, config.temporal_stride
    assert (side, stride) == (8 * config.patch, 4)
    for frames, latents in counts:
        video = jax.ShapeDtypeStruct((1, frames, 2 * side, side, 3), jnp.bfloat16)
        z = jax.eval_shape(TinyVAE.encode, tiny, video)
        assert z.shape == (1, latents, 2, 1, config.latent_channels)
        out = jax.eval_shape(TinyVAE.decode, tiny, z)
        assert out.shape == (1, 1 + stride * (latents - 1), 2 * side, side, 3)


def test_sides_must_be_multiples():
    with pytest.raises(ValueError, match="8x10 needs sides that are multiples of 4"):
        random_tiny(SMALL).encode(jnp.zeros((1, 1, 8, 10, 3)))


def test_parts_are_the_whole_and_compile_once():
    tiny, latents = random_tiny(SMALL), noise(2, 9, 3, 2, 4)
    whole = np.asarray(jax.jit(TinyVAE.decode)(tiny, latents))
    assert whole.shape == (2, 33, 12, 8, 3) and abs(whole).max() <= 1 and whole.std() > 0.1
    stream = jax.jit(TinyVAE.decode_stream)
    for size, programs in [(3, 2), (1, 4)]:  # the first of a video is a program of its own
        cache, parts = None, []
        for i in range(0, 9, size):
            part, cache = stream(tiny, cache, latents[:, i : i + size])
            parts.append(part)
        assert parts[0].shape[1] == 1 + 4 * (size - 1) and parts[1].shape[1] == 4 * size
        assert distance(np.concatenate(parts, axis=1), whole) <= 1e-6
        assert stream._cache_size() == programs
    memory = jax.tree.leaves(cache)
    assert len(memory) == 2 * SMALL.blocks and all(leaf.shape[1] == 1 for leaf in memory)
    # Nothing looks ahead, and what came before matters.
    later = np.concatenate([latents[:, :5], noise(2, 4, 3, 2, 4, seed=1)], axis=1)
    other = np.asarray(jax.jit(TinyVAE.decode)(tiny, later))
    np.testing.assert_array_equal(other[:, :17], whole[:, :17])
    assert distance(stream(tiny, None, latents[:, 8:])[0][:, -1], whole[:, -1]) > 1e-3


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """The tiny random model with a tiny autoencoder beside its VAE."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("with") / "model")
    stored = read_stored(folder)
    parts = {**stored.parts, "tiny_vae": SMALL}
    write_stored(folder, dataclasses.replace(stored, parts=parts))
    save_part(folder, "tiny_vae", random_params("tiny_vae", SMALL))
    return folder


@pytest.mark.slow
def test_a_pipeline_with_it_has_the_same_frames_at_the_same_times(folder):
    full, tiny = tt_jax.load(folder), tt_jax.load(folder, vae="tiny")
    assert isinstance(tiny.vae, TinyVAE) and tiny.config.vae == SMALL
    a, b = (pipe.generate(PROMPT, seconds=1.5) for pipe in (full, tiny))
    assert a.frames.shape == b.frames.shape and a.starts == b.starts == (0, 9, 21)
    np.testing.assert_array_equal(a.rollout.latents, b.rollout.latents)
    decoded = jax.jit(TinyVAE.decode)(tiny.vae, b.rollout.latents)
    frames = np.round((np.asarray(decoded) + 1) * 127.5)[:, :24]
    assert abs(frames - b.frames).max() <= 1 and (frames != b.frames).mean() < 1e-3

    # A continuation goes on where it stopped, and not with the other VAE.
    part = tiny.generate(PROMPT, seconds=0.5)
    rest = tiny.generate(PROMPT, seconds=1, state=part.state)
    joined = np.concatenate([part.frames, rest.frames], axis=1)
    assert abs(joined.astype(int) - b.frames).max() <= 1
    with pytest.raises(ValueError, match="decoded by another VAE"):
        full.generate(PROMPT, seconds=1, state=part.state)

    # From given frames: as many of them as the full VAE takes, five of six.
    given = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    assert tiny.generate(PROMPT, seconds=1, initial=given).starts == (5,)


def test_from_the_command_line(folder, tiny_model, tmp_path, capsys):
    prompt = ["generate", PROMPT, "--seconds", "0.5", "--vae", "tiny", "--model"]
    assert cli([*prompt, str(folder), "--out", str(tmp_path / "a.mp4")]) == 0
    assert (tmp_path / "a.mp4").exists()
    assert '"vae": "tiny"' in (tmp_path / "a.json").read_text()
    capsys.readouterr()
    # Without its weights: one sentence, and nothing is made.
    assert cli([*prompt, str(tiny_model), "--out", str(tmp_path / "b.mp4")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "holds no tiny autoencoder" in line
    assert f"tt-jax fetch taew2_1 {tiny_model}" in line and not (tmp_path / "b.mp4").exists()
    with pytest.raises(tt_jax.ModelError, match="no VAE 'small': give one of 'full', 'tiny'"):
        tt_jax.load(folder, vae="small")


def test_plan_counts_it(capsys):
    seen = {}
    for vae in ("full", "tiny"):
        assert cli(["plan", "--device", "24gb", "--vae", vae]) == 0
        rows = (line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines())
        seen[vae] = {row[0]: row[1].split()[0] for row in rows if len(row) == 2}
    assert float(seen["full"]["VAE's weights"]) == 0.25
    assert float(seen["tiny"]["VAE's weights"]) == 0.02
    operations = [float(seen[vae]["decoding a latent frame"]) for vae in ("full", "tiny")]
    assert operations[0] > 20 * operations[1] > 0
    assert seen["full"]["its passes"] == seen["tiny"]["its passes"]
    assert cli(["plan", "--model", "shapes", "--device", "24gb", "--vae", "tiny"]) == 2
    assert "no tiny autoencoder for this model's latents" in capsys.readouterr().err


def test_conversion_of_wan2_2s(tmp_path):
    """The sizes are told by shapes alone, and what was made is verified."""
    config = dataclasses.replace(NARROW["tiny_vae"], latent_channels=48, patch=2)
    tensors = random_tensors(BY_NAME["tiny_vae", "native"], config)
    file = save(tmp_path / "any_name.safetensors", tensors)
    assert convert([str(file), str(tmp_path / "model")]) == 0
    assert read_stored(tmp_path / "model").parts == {"tiny_vae": config}
    rows = list(verify(tmp_path / "model"))
    assert all(row.passed for row in rows) and any(row.check == "decoding" for row in rows)
