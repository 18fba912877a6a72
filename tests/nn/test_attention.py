"""Attention and rotary positions against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tt_jax.nn import dot_product as module
from tt_jax.nn.attention import attention
from tt_jax.nn.rope import rotate, rotation

B, T, S, N, H = 2, 6, 10, 3, 8


def reference(q, k, v, mask):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    logits = np.where(np.broadcast_to(mask[:, None], logits.shape), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnh->btnh", weights, v)


@pytest.fixture(
    params=[
        {},
        {"CACHE_BYTES": 4 * T * S},
        {"CACHE_BYTES": 2 * 4 * S},
        {"LOGIT_BYTES": 1, "CACHE_BYTES": 1},
    ],
    ids=["one block", "heads", "two rows", "rows"],
)
def blocks(request, monkeypatch):
    """The same tests with logits made head by head, and in blocks of queries."""
    for name, value in request.param.items():
        monkeypatch.setattr(module, name, value)


def inputs(dtype=np.float32):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, n, N, H)) for n in (T, S, S))
    return (jnp.asarray(x, dtype) for x in (q, k, v))


MASKS = {
    "all": np.ones((1, 1, S), bool),
    "one key": np.arange(S)[None, None] == 7,
    "per sample": np.random.default_rng(1).random((B, 1, S)) < 0.5,
    "per query": np.random.default_rng(2).random((1, T, S)) < 0.5,
    "full": np.random.default_rng(3).random((B, T, S)) < 0.5,
}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", MASKS)
def test_equals_numpy(name):
    q, k, v = inputs()
    mask = MASKS[name]
    got = attention(q, k, v, jnp.asarray(mask))
    np.testing.assert_allclose(got, reference(q, k, v, mask), atol=2e-6)
    if name == "all":
        np.testing.assert_allclose(got, attention(q, k, v), atol=1e-6)


@pytest.mark.usefixtures("blocks")
def test_invisible_keys_and_values_have_no_influence():
    q, k, v = inputs()
    mask = MASKS["per sample"]
    hidden = ~mask[:, 0, :, None, None]
    got = attention(q, k, v, jnp.asarray(mask))
    k, v = jnp.where(hidden, 1e6, k), jnp.where(hidden, -1e6, v)
    poisoned = attention(q, k, v, jnp.asarray(mask))
    np.testing.assert_array_equal(got, poisoned)


def test_bfloat16_keeps_its_dtype_and_softmax_in_float32():
    q, k, v = inputs(jnp.bfloat16)
    mask = MASKS["per sample"]
    got = attention(q, k, v, jnp.asarray(mask))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), reference(q, k, v, mask), atol=2e-2)


def test_gradient_through_blocks(monkeypatch):
    q, k, v = inputs()

    def gradient():
        return jax.grad(lambda q, k, v: jnp.sum(attention(q, k, v) ** 2), (0, 1, 2))(q, k, v)

    whole = gradient()
    monkeypatch.setattr(module, "CACHE_BYTES", 1)  # kept
    kept = gradient()
    monkeypatch.setattr(module, "LOGIT_BYTES", 1)  # made again
    for a, b, c in zip(whole, kept, gradient(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        np.testing.assert_allclose(a, c, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "most", "size"),
    [
        (4096, 1000, 512),  # divides, and is more than half of the most
        (4680, 170, 156),
        (4093, 1000, 819),  # a prime: five blocks, of which the last is padded
        (4078, 1000, 816),  # twice a prime
        (13, 6, 5),
        (7, 1, 1),
    ],
)
def test_blocks_of_any_length_are_few_and_large(length, most, size):
    assert module.block_size(length, most) == size
    assert -(-length // size) * size <= 1.2 * length


@pytest.mark.parametrize("name", ["per sample", "full"])
def test_a_prime_number_of_queries(monkeypatch, name):
    """Of 13, three blocks of 5, where a block that divides them would be of 1."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, n, N, H)), jnp.float32) for n in (13, S, S))
    mask = MASKS[name] if name == "per sample" else rng.random((B, 13, S)) < 0.5
    monkeypatch.setattr(module, "LOGIT_BYTES", 6 * 4 * B * N * S)
    np.testing.assert_allclose(
        module.xla(q, k, v, jnp.asarray(mask)), reference(q, k, v, mask), atol=2e-6
    )
    program = jax.make_jaxpr(lambda *x: module.xla(*x))(q, k, v, jnp.asarray(mask))
    scans = [e.params["length"] for e in program.jaxpr.eqns if e.primitive.name == "scan"]
    assert scans == [3]


@pytest.mark.parametrize("head_dim", [24, 48, 128])
def test_rotation_is_complex_multiplication_by_axes(head_dim):
    frames, height, width = np.array([3, 70_000]), 2, 3
    x = np.random.default_rng(0).normal(size=(1, 12, 2, head_dim)).astype(np.float32)
    got = rotate(jnp.asarray(x), rotation(jnp.asarray(frames, jnp.int32), height, width, head_dim))
    side = 2 * (head_dim // 6)
    split = (head_dim - 2 * side, side, side)
    grid = np.stack(np.meshgrid(frames, range(height), range(width), indexing="ij"), -1)
    angle = np.concatenate(
        [
            axis[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d)
            for axis, d in zip(grid.reshape(-1, 3).T, split, strict=True)
        ],
        axis=-1,
    )
    pairs = x.astype(np.float64).reshape(1, 12, 2, -1, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None]
    want = np.stack([turned.real, turned.imag], -1).reshape(x.shape)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_rotation_of_bfloat16_is_that_of_float32_rounded():
    x = jax.random.normal(jax.random.key(0), (2, 24, 3, 12), jnp.bfloat16)
    by = rotation(jnp.arange(70, 74), 2, 3, 12)
    got = rotate(x, by)
    assert got.dtype == jnp.bfloat16
    want = np.asarray(rotate(x.astype(jnp.float32), by).astype(jnp.bfloat16), np.float32)
    # Half way between two numbers, the last bit of a float32 decides.
    assert np.mean(np.asarray(got, np.float32) != want) < 1e-2
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-7, atol=1e-6)


def test_attention_depends_on_relative_positions_only():
    q, k, v = (x[:, :6] for x in inputs())

    def at(first):
        turn = rotation(jnp.array([first], jnp.int32), 2, 3, H)
        return attention(rotate(q, turn), rotate(k, turn), v)

    np.testing.assert_allclose(at(0), at(12_345), atol=2e-6)
