"""Layout tables: axes there and back, stacked layers, published layouts, one error for all."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from convert import vae as vae_names
from convert.layout import LayoutError, Row, check, flatten, from_params, nest, to_params
from tt_jax.models.configs import CONFIGS
from tt_jax.models.vae import VAE, VAEConfig

LAYOUTS = Path(__file__).resolve().parents[2] / "shared" / "layouts"


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def params_of(config):
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: VAE(config, rngs=nnx.Rngs(0)))))


@pytest.mark.parametrize(
    ("axes", "sizes", "source", "ours"),
    [
        ("o i -> i o", {}, (3, 4), lambda x: x.T),
        ("c 1 1 -> c", {}, (5, 1, 1), lambda x: x[:, 0, 0]),
        ("o i h w -> 1 h w i o", {}, (2, 3, 4, 5), lambda x: x.transpose(2, 3, 1, 0)[None]),
        (
            "o c 1 h w -> (h w c) o",
            {"h": 2, "w": 2},
            (6, 4, 1, 2, 2),
            lambda x: x[:, :, 0].transpose(2, 3, 1, 0).reshape(16, 6),
        ),
    ],
)
def test_axes(axes, sizes, source, ours):
    row = Row("name", "path", axes, sizes)
    array = noise(*source)
    expected = ours(array)
    assert row.source_shape(expected.shape) == source
    out = row.read({"name": array}.get, expected.shape)
    np.testing.assert_array_equal(out, expected)
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(row.write(out)["name"], array)


def test_stacked_layers():
    table = (Row("blocks.{i}.fc.weight", "blocks/fc/kernel", "o i -> i o"),)
    arrays = {f"blocks.{i}.fc.weight": i + noise(2, 5) for i in range(12)}
    model = {"blocks": {"fc": {"kernel": noise(12, 5, 2)}}}
    params = to_params(table, arrays, model)
    np.testing.assert_array_equal(params["blocks"]["fc"]["kernel"][10], 10 + noise(2, 5).T)
    again = from_params(table, params)
    assert again.keys() == arrays.keys()
    assert all(np.array_equal(again[name], arrays[name]) for name in arrays)


def test_flatten_and_nest():
    params = {"levels": {0: {"kernel": 1}, 1: {"kernel": 2}}, "scale": 3}
    assert dict(flatten(params)) == {"levels/0/kernel": 1, "levels/1/kernel": 2, "scale": 3}
    assert nest(dict(flatten(params))) == params


def test_everything_wrong_is_told_at_once():
    config = CONFIGS["shapes"].vae
    model = params_of(config)
    table = vae_names.native(config)
    ours = dict(flatten(model))
    shapes = {row.name: row.source_shape(ours[row.path].shape) for row in table}
    check(table, shapes, model)
    del shapes["conv2.bias"], shapes["decoder.head.0.gamma"]
    shapes |= {"conv1.bias": (3,), "decoder.extra": (1,)}
    with pytest.raises(LayoutError) as error:
        check(table, shapes, model)
    assert sorted(error.value.missing) == ["conv2.bias", "decoder.head.0.gamma"]
    assert error.value.unexpected == ["decoder.extra"]
    assert error.value.misshapen == {"conv1.bias": ((3,), (16,))}
    for part in ("4 arrays", "missing: conv2.bias", "conv1.bias is [3], expected [16]"):
        assert part in str(error.value)


def test_a_table_that_lacks_a_parameter():
    with pytest.raises(ValueError, match=r"differ in.*'b'"):
        check((Row("a", "a", "c -> c"),), {"a": (1,)}, {"a": noise(1), "b": noise(1)})


@pytest.mark.parametrize("table", [vae_names.native, vae_names.diffusers])
@pytest.mark.parametrize(
    "config",
    [
        VAEConfig.wan(),
        CONFIGS["shapes"].vae,
        VAEConfig(dim_mult=(1, 1, 2), temporal_downsample=(False, True), res_blocks=1),
    ],
    ids=["wan", "shapes", "other"],
)
def test_vae_tables_name_every_parameter_once(config, table):
    rows = table(config)
    paths = [row.path for row in rows]
    assert len(set(paths)) == len(paths) == len({row.name for row in rows})
    assert set(paths) == dict(flatten(params_of(config))).keys()


@pytest.mark.parametrize("kind", ["native", "diffusers"])
def test_published_vae_layouts(kind):
    path = LAYOUTS / f"wan2.1_vae.{kind}.json"
    if not path.is_file():
        pytest.skip("the published layouts aren't here")
    config = VAEConfig.wan()
    check(getattr(vae_names, kind)(config), json.loads(path.read_text()), params_of(config))


def test_a_source_is_read_once():
    """As those of a true-size model must be: here each is gone once it was read."""
    arrays = {f"a.{i}": noise(2, 3) for i in range(3)} | {"b": noise(4)}
    kept = dict(arrays)
    stacked = Row("a.{i}", "a", "o i -> i o").read(arrays.pop, (3, 3, 2))
    np.testing.assert_array_equal(stacked, [kept[f"a.{i}"].T for i in range(3)])
    assert arrays.keys() == {"b"}
