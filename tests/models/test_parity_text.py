"""The text encoder against arrays recorded from Wan's own encoder, and against transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import arrays_of, converted, distance, empty
from safetensors.numpy import load_file

from convert import text as names
from convert.layout import check, from_params, to_params
from tt_jax.models.text import TextConfig, TextEncoder, relative_buckets

pytestmark = pytest.mark.parity


forward = jax.jit(lambda encoder, ids, mask: encoder(ids, mask))


# --- recorded arrays ----------------------------------------------------------------------------


def test_recorded_buckets(golden):
    recorded = load_file(golden / "t5_small_io.safetensors")["rel_buckets"]
    np.testing.assert_array_equal(relative_buckets(200, 32, 128), recorded)


@pytest.mark.parametrize("case", ["", "_long"], ids=["32 tokens", "200 tokens"])
def test_recorded_encoder(case, golden, parity_record):
    config = TextConfig(
        vocab=512, dim=64, attention_dim=64, ffn_dim=128, heads=4, layers=3, text_len=32
    )
    encoder = converted(
        "text", names.native, load_file(golden / "t5_small_weights.safetensors"), config
    )
    arrays = load_file(golden / "t5_small_io.safetensors")
    ids, mask = arrays["ids" + case].astype(np.int32), arrays["mask" + case].astype(bool)
    out = forward(encoder, ids, mask)
    size = f"3 layers, width 64, {ids.shape[1]} tokens"
    parity_record("text", "recorded", size, distance(out, arrays["out" + case]), 1e-5)


# --- transformers -------------------------------------------------------------------------------


def reference(config: TextConfig, seed: int = 0):
    """A transformers encoder with random weights, norms included."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=config.vocab,
            d_model=config.dim,
            d_kv=config.attention_dim // config.heads,
            d_ff=config.ffn_dim,
            num_layers=config.layers,
            num_heads=config.heads,
            feed_forward_proj="gated-gelu",
        )
    ).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(generator=random)
            if "norm" in name:
                weight.mul_(0.2).add_(1)
            elif name.endswith(".q.weight"):
                weight.mul_((config.dim * config.attention_dim / config.heads) ** -0.5)
            elif "shared" not in name and "bias" not in name:
                weight.mul_(weight.shape[1] ** -0.5)
    return model


def prompts(config: TextConfig, length: int):
    """Random ids of two prompts, one filling three quarters of the rows and one only a few."""
    random = np.random.default_rng(0)
    mask = np.arange(length) < np.array([[3 * length // 4], [5]])
    ids = np.where(mask, random.integers(3, config.vocab, mask.shape), 0)
    return ids.astype(np.int32), mask


def run_reference(model, ids, mask):
    torch = pytest.importorskip("torch")

    with torch.no_grad():
        out = model(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
    return np.where(mask[..., None], out.last_hidden_state.float().numpy(), 0)


SMALL = TextConfig(vocab=512, dim=64, attention_dim=96, ffn_dim=128, heads=4, layers=3)


@pytest.mark.parametrize("length", [40, 512])
def test_transformers_small(length, parity_record):
    model = reference(SMALL)
    encoder = converted("text", names.transformers, arrays_of(model), SMALL)
    ids, mask = prompts(SMALL, length)
    value = distance(forward(encoder, ids, mask), run_reference(model, ids, mask))
    size = f"3 layers, width 64, {length} tokens"
    parity_record("text", "transformers", size, value, 1e-5)


@pytest.mark.huge
def test_transformers_true_widths(parity_record):
    config = TextConfig(
        vocab=1024, dim=4096, attention_dim=4096, ffn_dim=10_240, heads=64, layers=2
    )
    model = reference(config)
    ids, mask = prompts(config, 64)
    expected = run_reference(model, ids, mask)
    encoder = converted("text", names.transformers, arrays_of(model), config)
    value = distance(forward(encoder, ids, mask), expected)
    parity_record("text", "transformers", "2 layers, true widths", value, 1e-4)


def test_bfloat16_is_as_close_as_torch(parity_record):
    """Both frameworks' bfloat16 against float32: ours may be at most 1.2 times as far."""
    torch = pytest.importorskip("torch")

    config = TextConfig(vocab=512, dim=256, attention_dim=256, ffn_dim=640, heads=4, layers=4)
    model = reference(config)
    ids, mask = prompts(config, 64)
    encoder = converted("text", names.transformers, arrays_of(model), config)
    exact = run_reference(model, ids, mask)
    theirs = distance(run_reference(model.to(torch.bfloat16), ids, mask), exact)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), encoder)
    ours = distance(forward(half, ids, mask).astype(jnp.float32), exact)
    parity_record("text, bfloat16", "transformers", "4 layers, width 256", ours, 1.2 * theirs)


# --- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["native", "transformers"])
def test_published_layout(layout, golden):
    stored = json.loads((golden.parent / f"layouts/umt5_xxl_encoder.{layout}.json").read_text())
    shapes = {name: tuple(shape) for name, shape in stored.items()}
    config = TextConfig.umt5_xxl()
    check(getattr(names, layout)(config), shapes, empty("text", config))


def test_tied_embedding_may_be_stored_once():
    arrays = arrays_of(reference(SMALL))
    both = converted("text", names.transformers, arrays, SMALL)
    del arrays["encoder.embed_tokens.weight"]
    once = converted("text", names.transformers, arrays, SMALL)
    np.testing.assert_array_equal(both.embedding[...], once.embedding[...])


@pytest.mark.parametrize("layout", [names.native, names.transformers])
def test_there_and_back(layout):
    encoder = TextEncoder(SMALL, rngs=nnx.Rngs(0))
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(encoder)))
    back = to_params(layout(SMALL), from_params(layout(SMALL), params), params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
