"""One suite over all implementations of attention, against NumPy in float64.

Flash attention and cuDNN's run where there is a TPU or GPU. Everywhere else the kernel's body is
interpreted, cuDNN's compacted keys go through XLA, and the TPU's compiler compiles the true kernel.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tt_jax.nn import flash, kernels
from tt_jax.nn.attention import attention, choice
from tt_jax.nn.dot_product import Past, joined, xla

B, T, S, N, H = 2, 20, 150, 2, 16  # S: of the context, to which the T own keys come


def on(platform):
    return pytest.mark.skipif(jax.default_backend() != platform, reason=f"needs a {platform}")


# Name: function, head width, dtype, tolerance.
IMPLEMENTATIONS = {
    "xla": (xla, H, np.float32, 2e-6),
    "flash, interpreted": (
        functools.partial(kernels.flash, interpret=True), H, np.float32, 2e-6,
    ),
    "cudnn's keys": (
        functools.partial(kernels.cudnn, implementation="xla"), H, np.float32, 2e-6,
    ),
    "flash": (kernels.flash, 128, jnp.bfloat16, 2e-2),
    "cudnn": (kernels.cudnn, 128, jnp.bfloat16, 2e-2),
}  # fmt: skip
NEEDS = {"flash": on("tpu"), "cudnn": on("gpu")}


def context(valid):
    """A mask over the context, after which all own keys are seen."""
    return np.concatenate([valid, np.ones((B, T), bool)], axis=1)[:, None]


MASKS = {
    "random": context(np.random.default_rng(1).random((B, S)) < 0.5),
    "empty context": context(np.zeros((B, S), bool)),
    "everything": context(np.ones((B, S), bool)),
    "one key": np.broadcast_to(np.arange(S + T) == 131, (B, 1, S + T)),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=NEEDS.get(name, ())) for name in IMPLEMENTATIONS],
)
def case(request):
    """An implementation, compiled once for all masks, its inputs and tolerance."""
    function, width, dtype, tolerance = IMPLEMENTATIONS[request.param]
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, n, N, width)), dtype) for n in (T, S + T, S + T))
    # Two blocks of queries and of keys, in flash attention.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flash, "ROWS", 16)
        patch.setattr(flash, "KEYS", 128)
        yield jax.jit(function), (q, k, v), tolerance


def reference(q, k, v, mask):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    logits = np.where(mask[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("name", MASKS)
def test_equals_numpy(case, name):
    function, (q, k, v), tolerance = case
    got = function(q, k, v, jnp.asarray(MASKS[name])).astype(np.float32)
    np.testing.assert_allclose(got, reference(q, k, v, MASKS[name]), atol=tolerance)


def test_poisoned_keys_and_values_change_nothing(case):
    function, (q, k, v), _ = case
    mask = MASKS["random"]
    hidden = ~mask[:, 0, :, None, None]
    clean = function(q, k, v, jnp.asarray(mask))
    k, v = (jnp.where(hidden, jnp.asarray(1e4, k.dtype), x) for x in (k, v))
    np.testing.assert_array_equal(clean, function(q, k, v, jnp.asarray(mask)))


def test_kept_keys_stand_in_front_in_their_order():
    k = jnp.arange(6, dtype=jnp.float32).reshape(1, 6, 1, 1)
    mask = jnp.asarray([0, 1, 0, 0, 1, 1], bool)[None, None]
    keys, values, length = kernels.compact(k, -k, mask)
    assert keys[0, :3, 0, 0].tolist() == [1, 4, 5] == (-values[0, :3, 0, 0]).tolist()
    assert length.tolist() == [3] and length.dtype == jnp.int32


def test_flash_has_the_gradient_of_xla():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 16, 1, H)), jnp.float32) for _ in range(3))
    mask = jnp.asarray(rng.random((1, 1, 16)) < 0.5)

    def gradient(function):
        return jax.grad(lambda *x: jnp.sum(function(*x, mask) ** 2), (0, 1, 2))(q, k, v)

    got = gradient(functools.partial(kernels.flash, interpret=True))
    for a, b in zip(got, gradient(xla), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("shown", [None, 0.0, 0.5], ids=["all", "own only", "half"])
@pytest.mark.parametrize("width", [16, 256])
def test_a_past_is_attended_where_it_lies(monkeypatch, shown, width):
    """The second of three layers; the others, and what lies behind an array's end, are NaN."""
    monkeypatch.setattr(flash, "KEYS", 128)
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, T, N, width)), jnp.float32) for _ in range(3))
    nothing = np.full((3, B, S, N, width), np.nan)
    kept = (nothing.copy(), nothing.copy())
    for x in kept:
        x[1] = rng.normal(size=x.shape[1:])
    past = Past(*(jnp.asarray(x, jnp.float32) for x in kept), jnp.int32(1))
    mask = None if shown is None else jnp.asarray(context(rng.random((B, S)) < shown))
    got = flash.flash(q, k, v, mask, past, True)
    seen = np.ones((B, 1, S + T), bool) if mask is None else mask
    np.testing.assert_allclose(got, reference(q, *joined(k, v, past), seen), atol=2e-6)


@pytest.mark.parametrize("length", [1, 16, 512, 1024, 1665, 4680, 28_080])
def test_blocks_waste_little(length):
    size = flash.blocks(length, 128, flash.KEYS)
    padded = -(-length // size) * size
    assert size % 128 == 0 and padded - length < max(128, 0.07 * length)
    assert size <= flash.KEYS and (length > flash.KEYS or padded == size)


@pytest.mark.parametrize("impl", ["flash", "cudnn"])
def test_a_mask_of_each_query_is_refused_by_kernels(impl):
    x = jnp.zeros((1, 4, 1, 16))
    with pytest.raises(ValueError, match="use xla"):
        attention(x, x, x, jnp.ones((1, 4, 4), bool), impl=impl)


# --- the default --------------------------------------------------------------------------------


def shape(*size, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(size, dtype)


@pytest.mark.parametrize(
    ("device", "q", "mask", "impl"),
    [
        (("cpu", "cpu", 0.0), shape(1, 4680, 12, 128), None, "xla"),
        (("tpu", "TPU v5 lite", 0.0), shape(1, 4680, 12, 128), None, "flash"),
        (("tpu", "TPU v5 lite", 0.0), shape(1, 4680, 12, 128, dtype=jnp.float32), None, "xla"),
        (("tpu", "TPU v5 lite", 0.0), shape(1, 4680, 3, 64), None, "xla"),
        (("tpu", "TPU v5 lite", 0.0), shape(1, 64, 12, 128), None, "xla"),
        (("tpu", "TPU v5 lite", 0.0), shape(1, 256, 2, 128), shape(1, 256, 256, dtype=bool), "xla"),
        (("gpu", "NVIDIA H100 80GB HBM3", 9.0), shape(1, 4680, 12, 128), None, "cudnn"),
        (("gpu", "NVIDIA H100 80GB HBM3", 9.0), shape(1, 4680, 1, 384), None, "xla"),
        (("gpu", "NVIDIA H100 80GB HBM3", 9.0), shape(1, 99, 2, 64, dtype=np.float32), None, "xla"),
        (("gpu", "Tesla T4", 7.5), shape(1, 4680, 12, 128), None, "xla"),
    ],
)  # fmt: skip
def test_default_by_device_dtype_and_shape(monkeypatch, device, q, mask, impl):
    monkeypatch.setattr("tt_jax.nn.attention.device_of", lambda q: device)
    got = choice(q, q, mask)
    assert got.impl == impl and got.why


def test_where_the_arrays_are_decides():
    """A TPU's mesh is set, and what is to be attended lies in the host's memory."""
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", None, "tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=tpu)
    q = shape(1, 256, 2, 128)
    here = jnp.zeros(q.shape, q.dtype, device=jax.devices("cpu")[0])
    with jax.sharding.use_abstract_mesh(mesh):
        assert choice(q, q).impl == "flash"
        assert choice(here, here) == ("xla", "a cpu has no kernel of its own")


@pytest.mark.parametrize("chips", [1, 2])
def test_the_tpu_compiler_takes_flash_attention(tpu_mesh, chips):
    mesh = tpu_mesh(chips, heads=2)
    with jax.set_mesh(mesh):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        q, k, mask = (
            jax.ShapeDtypeStruct(size, kind, sharding=place)
            for size, kind in (
                ((1, 300, 2, 128), jnp.bfloat16),
                ((1, 1100, 2, 128), jnp.bfloat16),
                ((1, 1, 1100), jnp.bool_),
            )
        )
        assert choice(q, k, mask).impl == "flash"
        compiled = jax.jit(attention).lower(q, k, k, mask).compile()
    assert "flash_attention" in compiled.as_text()
