import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tt_jax.models.text import TextConfig, TextEncoder, relative_buckets
from tt_jax.models.tokenizer import END, PAD, Tokenizer, clean, train_sentencepiece

CONFIG = TextConfig(vocab=96, dim=32, attention_dim=48, ffn_dim=40, heads=4, layers=3, text_len=16)
CAPTIONS = [
    f"a {size} {colour} {shape} moving {way} on a {ground} background"
    for size, colour, shape, way, ground in itertools.product(
        ("small", "large"),
        ("red", "green", "blue", "yellow", "purple"),
        ("circle", "square", "triangle"),
        ("up", "down", "to the right", "up and to the left"),
        ("white", "black", "gray"),
    )
]


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_sentencepiece(CAPTIONS)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(CONFIG, rngs=nnx.Rngs(0))


# --- clean-up -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", ""),
        (" \n\t ", ""),
        ("  a red\n\tcircle\u3000moves ", "a red circle moves"),
        ("rock &amp; roll &lt;3", "rock & roll <3"),
        ("&amp;amp;lt;b&amp;amp;gt;", "<b>"),  # escaped three times: ftfy resolves one more
        ("<i> &amp;amp;", "<i> &"),  # ftfy leaves entities beside a tag alone
        ("schÃ¶n", "schön"),  # UTF-8 read as Latin-1
        ("“a” ‘b’", "\"a\" 'b'"),
        ("a\u0000b\u0007c", "abc"),
        ("ﬁne ｗｉｄｅ", "fine wide"),
        ("日本語 👩‍👧", "日本語 👩‍👧"),
    ],
)
def test_clean(prompt, expected):
    assert clean(prompt) == expected


# --- tokens -------------------------------------------------------------------------------------


def test_tokens_are_padded_after_an_end_token(model):
    ids, mask = Tokenizer(model, 16)(["a red circle", ""])
    assert ids.shape == mask.shape == (2, 16)
    assert ids.dtype == np.int32
    assert mask.dtype == bool
    assert mask.sum(axis=1).tolist() == [4, 1]
    assert ids[0, 3] == ids[1, 0] == END
    assert (ids[~mask] == PAD).all()


def test_no_prompts_give_no_rows(model):
    ids, mask = Tokenizer(model, 16)([])
    assert ids.shape == mask.shape == (0, 16)


@pytest.mark.parametrize(
    "prompt",
    [
        "日本語のプロンプト",
        "👩‍👩‍👧‍👦 ☃",
        "\ud800 lone surrogate",
        "\U0010ffff\ufffe",
        "&#xD800;",
        "\x00",
        "▁",
        "</s>",
    ],
)
def test_any_unicode_has_tokens(model, prompt):
    tokenizer = Tokenizer(model, 64)
    ids, mask = tokenizer([prompt])
    valid = ids[mask]
    assert valid[-1] == END
    assert (valid[:-1] > 2).all()  # nothing unknown: bytes stand in
    assert (valid < tokenizer.vocab).all()


def test_bytes_carry_the_text_they_stand_for(model):
    tokenizer = Tokenizer(model, 64)
    first, second = tokenizer(["日本", "日木"])[0]
    assert (first != second).any()


def test_long_prompt_is_cut_with_a_warning(model):
    tokenizer = Tokenizer(model, 6)
    prompt = "a small red circle moving up and to the left"
    with pytest.warns(UserWarning, match="Prompt 1 has 11 tokens.*'up and to the left'"):
        ids, mask = tokenizer(["a circle", prompt])
    whole, _ = Tokenizer(model, 16)([prompt])
    assert mask[1].all()
    assert ids[1].tolist() == [*whole[0, :5], END]


def test_prompt_of_exactly_the_length_is_whole(model):
    ids, mask = Tokenizer(model, 4)(["a red circle"])
    assert mask.all()
    assert ids[0, -1] == END


def test_model_from_a_file(model, tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(model)
    expected = Tokenizer(model, 16)(CAPTIONS[:3])
    for form in (path, str(path)):
        for got, want in zip(Tokenizer(form, 16)(CAPTIONS[:3]), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_training_gives_every_word_one_piece(model, capfd):
    tokenizer = Tokenizer(model, 8)
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    _, mask = tokenizer(words)
    assert (mask.sum(axis=1) == 2).all()
    assert tokenizer.vocab <= 512
    assert train_sentencepiece(CAPTIONS) == model
    assert capfd.readouterr() == ("", "")


def test_case_does_not_matter_to_a_trained_model(model):
    ids, _ = Tokenizer(model, 16)(["A Red CIRCLE", "a red circle"])
    np.testing.assert_array_equal(*ids)


# --- encoder ------------------------------------------------------------------------------------


def test_buckets_by_hand():
    buckets = relative_buckets(200, 32, 128)
    assert buckets.dtype == np.int32
    row = buckets[100]  # query 100: the key's distance is its index - 100
    at = {0: 0, -1: 1, -7: 7, -8: 8, -16: 10, -32: 12, -64: 14, -100: 15, 1: 17, 16: 26, 64: 30}
    assert {offset: int(row[100 + offset]) for offset in at} == at
    # 1000 rows reach beyond the maximum distance on either side.
    far = relative_buckets(1000, 32, 128)
    assert (far[0, 128:] == 31).all()
    assert (far[999, : 999 - 128] == 15).all()
    np.testing.assert_array_equal(far[:200, :200], buckets)


def tokens(valid: list[int], length: int):
    ids = jax.random.randint(jax.random.key(1), (len(valid), length), 3, CONFIG.vocab)
    mask = jnp.arange(length)[None] < jnp.array(valid)[:, None]
    return jnp.where(mask, ids, PAD), mask


def test_rows_beyond_the_mask_are_zero(encoder):
    ids, mask = tokens([9, 1], 16)
    out = encoder(ids, mask)
    assert out.shape == (2, 16, CONFIG.dim)
    assert out.dtype == jnp.float32
    assert (out[~mask] == 0).all()
    assert (jnp.abs(out[mask]).max(axis=-1) > 0.1).all()


def test_padding_has_no_influence(encoder):
    ids, mask = tokens([9, 4], 16)
    out = encoder(ids, mask)
    np.testing.assert_array_equal(encoder(jnp.where(mask, ids, 77), mask), out)
    short = encoder(ids[:, :10], mask[:, :10])
    np.testing.assert_allclose(short, out[:, :10], atol=2e-6)
    alone = encoder(ids[1:], mask[1:])
    np.testing.assert_allclose(alone, out[1:], atol=2e-6)


def test_order_of_the_words_matters(encoder):
    ids, mask = tokens([8], 16)
    swapped = ids.at[0, jnp.array([2, 5])].set(ids[0, jnp.array([5, 2])])
    changed = jnp.abs(encoder(ids, mask) - encoder(swapped, mask)).max(axis=-1)[0, :8]
    assert (changed > 1e-3).all()


def test_scan_equals_a_loop_over_layers(encoder):
    ids, mask = tokens([9, 4], 16)
    buckets = relative_buckets(16, CONFIG.buckets, CONFIG.max_distance)
    x = encoder.embedding[...][ids]
    for i in range(CONFIG.layers):
        x = jax.tree.map(lambda leaf, i=i: leaf[i], encoder.blocks)(x, mask, buckets)
    expected = jnp.where(mask[..., None], encoder.norm(x), 0)
    np.testing.assert_allclose(encoder(ids, mask), expected, atol=2e-6)


@pytest.mark.slow
def test_every_parameter_has_a_gradient(encoder):
    ids, mask = tokens([9, 4], 16)
    target = jax.random.normal(jax.random.key(2), (2, 16, CONFIG.dim))

    def loss(encoder):
        return jnp.sum(encoder(ids, mask) * target)

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(encoder)):
        assert jnp.isfinite(leaf).all(), path
        assert jnp.abs(leaf).max() > 0, path


def test_bfloat16_stays_close(encoder):
    ids, mask = tokens([9, 4], 16)
    expected = encoder(ids, mask)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), encoder)(ids, mask)
    assert half.dtype == jnp.bfloat16
    error = jnp.linalg.norm(half.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
    assert error < 0.02


def test_published_size():
    shapes = nnx.eval_shape(
        lambda: TextEncoder(TextConfig.umt5_xxl(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    leaves = jax.tree.leaves(shapes)
    assert sum(leaf.size for leaf in leaves) == 5_680_910_336
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
