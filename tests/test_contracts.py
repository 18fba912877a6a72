"""What the test run checks of every function of ours, and that it does."""

import dataclasses

import jax.numpy as jnp
import pytest
from flax import nnx
from jaxtyping import Array, Float, Int, TypeCheckError

from tt_jax.contracts import checked
from tt_jax.nn.attention import attention
from tt_jax.nn.layers import Linear
from tt_jax.trim.drift import Statistics, token_drift


def ones(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


def test_a_wrong_axis_fails():
    q = ones(1, 4, 2, 8)
    with pytest.raises(TypeCheckError, match=r"(?s)parameters of tt_jax.nn.attention.attention"):
        attention(q, ones(1, 6, 2, 8), ones(1, 5, 2, 8))


def test_a_wrong_dtype_fails():
    with pytest.raises(TypeCheckError, match="layer"):
        Linear(4, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))(ones(2, 4, dtype=jnp.int32))


def test_what_broadcasts_without_being_asked_fails():
    assert token_drift(ones(2, 3, 4, 5), ones(2, 1, 4, 5)).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="rank_promotion"):
        ones(2, 3) + ones(3)
    with pytest.raises(ValueError, match="promotion"):
        ones(2) + ones(2, dtype=jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Pair:
    values: Float[Array, "b p"]
    counts: Int[Array, " b"]
    more: Float[Array, " p"] | None = None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"values": ones(2, 3, 1)},
            r"Pair.values must be Float\[Array, 'b p'\], not float32\[2, 3, 1\]",
        ),
        ({"counts": ones(3, dtype=jnp.int32)}, r"Pair.counts must be .* not int32\[3\]"),
        ({"counts": ones(2)}, r"Pair.counts must be Int\[Array, ' ?b'\], not float32\[2\]"),
        ({"more": ones(2)}, r"Pair.more must be .*None, not float32\[2\]"),
        ({"values": 3.0}, "Pair.values must be .* not 3.0"),
    ],
)
def test_a_record_is_checked_where_it_is_made(wrong, words):
    right = {"values": ones(2, 3), "counts": ones(2, dtype=jnp.int32)}
    assert checked(Pair(**right)).more is None
    with pytest.raises(TypeError, match=words):
        checked(Pair(**right | wrong))


def test_records_of_ours_are_checked():
    wrong = dataclasses.replace(Statistics.start(2), mean=ones(3))
    with pytest.raises(TypeError):
        wrong.update(ones(2), jnp.array(True))
