"""What weights of 8 bits change in the latents, judged by the worst chunk.

    python -m benchmarks quantize          minutes on a CPU; --toy for seconds

The reference is bfloat16; float32 beside it shows what bfloat16 itself costs. Every chunk is made
from the reference's own past (the same context), and from what the arm made before (free-running).
PSNR is that of a chunk's latents; its peak is the range of all latents of the reference's sample.
TokenTrim goes by medians, at lam = 1, so that it has much to decide.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tt_jax
from tt_jax.checkpoint import abstract, flatten, nest, quantised, shapes
from tt_jax.models.dit import DiT, DiTConfig
from tt_jax.nn.int8 import round_to_int8
from tt_jax.nn.layers import Linear, to_rank, wide
from tt_jax.shapes.language import evaluation_prompts

GROUPS = {
    "self-attention": [("self_attn", name) for name in "qkvo"],
    "cross-attention": [("cross_attn", name) for name in "qkvo"],
    "feed-forward": [("ffn", name) for name in ("fc1", "fc2")],
}
TRIM = tt_jax.TokenTrim(lam=1.0, statistics="robust")
TOY = DiTConfig(48, 64, layers=3, heads=2, channels=4, text_dim=16, text_len=8)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is rolled out.

    Attributes:
        name: of the model.
        config: its sizes.
        params: its weights in float32, on the host.
        text: embeddings of each sample.
        strategy: how chunks are made.
        chunks: of each sample.
    """

    name: str
    config: DiTConfig
    params: Any
    text: Any
    strategy: Any
    chunks: int

    def request(self, chunks: int) -> dict[str, Any]:
        """What `rollout` and `stream` are asked for."""
        return {"grid": (8, 8), "strategy": self.strategy, "trim": TRIM, "chunks": chunks}


def on_host(dit: DiT) -> Any:
    """A transformer's weights."""
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(dit)))


def embedded(chunks: int, batch: int) -> Case:
    """The embedded model with some of its evaluation's prompts."""
    pipe = tt_jax.load("shapes", jnp.float32)
    text = pipe.encode_prompt([caption for caption, _ in evaluation_prompts(batch)])
    return Case("shapes", pipe.config.dit, on_host(pipe.dit), text, pipe.strategy(), chunks)


def random(name: str, config: DiTConfig, chunks: int, batch: int) -> Case:
    """A model with random weights, and random text."""
    params = on_host(DiT(config, rngs=nnx.Rngs(0)))
    text = jax.random.normal(jax.random.key(1), (batch, config.text_len, config.text_dim))
    return Case(name, config, params, text, tt_jax.SelfForcing(window=9), chunks)


def plain(case: Case, dtype: Any) -> DiT:
    """The transformer, not quantised."""
    graph = nnx.graphdef(abstract("dit", case.config, dtype))
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(x, dtype), case.params))


def shipped(case: Case) -> DiT:
    """The transformer as `load(..., quantize="int8")` makes it: first and last block stay."""
    config = dataclasses.replace(case.config, quantize="int8")
    arrays = quantised(shapes("dit", config), flatten(case.params))
    graph, like = nnx.split(abstract("dit", config, jnp.bfloat16))
    cast = lambda x, leaf: jnp.asarray(x, leaf.dtype)  # noqa: E731
    return nnx.merge(graph, jax.tree.map(cast, nest(dict(arrays)), nnx.to_pure_dict(like)))


class Product(nnx.Module):
    """A stack of linear layers of which some have rounded weights; the scale of others is one.

    `Int8Linear` for any choice of layers: whole numbers up to 127 are exact in bfloat16.
    """

    def __init__(self, linear: Linear, layers: Sequence[int]) -> None:
        kernel = np.array(linear.kernel[...], np.float32)
        scale = np.ones((len(kernel), kernel.shape[-1]), np.float32)
        for layer in layers:
            kernel[layer], factor = round_to_int8(kernel[layer], axis=-2)
            scale[layer] = factor[0]
        self.kernel = nnx.Param(jnp.asarray(kernel, linear.kernel.dtype))
        self.scale = nnx.Param(jnp.asarray(scale))
        self.bias = linear.bias

    def __call__(self, x: jax.Array) -> jax.Array:
        y = wide(x @ self.kernel[...])
        y = (y * to_rank(self.scale[...], y.ndim)).astype(x.dtype)
        assert self.bias is not None  # each of them has one
        return y + to_rank(self.bias[...], y.ndim)


def some(
    case: Case, groups: Sequence[str], layers: Sequence[int], dtype: Any = jnp.bfloat16
) -> DiT:
    """The transformer with rounded weights in some groups of some layers."""
    dit = plain(case, dtype)
    # Rounded from what is stored, as `shipped` does.
    whole = plain(case, jnp.float32)
    for group, members in GROUPS.items():
        for part, name in members:
            linear = getattr(getattr(whole.blocks, part), name)
            product = Product(linear, layers if group in groups else ())
            product.kernel = nnx.Param(product.kernel[...].astype(dtype))
            product.bias = getattr(getattr(dit.blocks, part), name).bias
            setattr(getattr(dit.blocks, part), name, product)
    return dit


@dataclasses.dataclass(frozen=True)
class Made:
    """Chunks on the host: chunk, sample, then the rest.

    Attributes:
        latents: with an axis for all of a chunk's values.
        triggered: whether TokenTrim made the chunk again.
        dropped: positions that it dropped for that.
    """

    latents: np.ndarray
    triggered: np.ndarray
    dropped: np.ndarray

    @classmethod
    def of(cls, outs: Sequence[tt_jax.Rollout]) -> "Made":
        """Rollouts of one chunk each."""
        flat = lambda x: np.asarray(x, np.float64).reshape(len(x), -1)  # noqa: E731
        return cls(
            np.stack([flat(out.latents) for out in outs]),
            np.stack([np.asarray(out.triggered)[:, 0] for out in outs]),
            np.stack([flat(out.pruned) > 0 for out in outs]),
        )

    def psnr(self, wanted: "Made") -> np.ndarray:
        """Of each chunk of each sample, dB."""
        peak = np.ptp(wanted.latents, axis=(0, 2))
        error = np.mean((self.latents - wanted.latents) ** 2, axis=-1)
        return 20 * np.log10(peak) - 10 * np.log10(np.maximum(error, 1e-20))


def free(case: Case, dit: DiT) -> list[tt_jax.Rollout]:
    """Each chunk after those that the transformer itself made."""
    return list(tt_jax.stream(dit, case.text, jax.random.key(0), **case.request(case.chunks)))


def forced(
    case: Case, dit: DiT, reference: Sequence[tt_jax.Rollout], every: int = 1
) -> list[tt_jax.Rollout]:
    """Each chunk, or every so many, from the state in which the reference began it."""
    dtype = dit.head.kernel.dtype

    def here(state: Any) -> Any:
        cast = lambda x: x.astype(dtype) if x.dtype == jnp.bfloat16 else x  # noqa: E731
        origin = dataclasses.replace(state.origin, model=dit.config, dtype=str(dtype))
        return dataclasses.replace(jax.tree.map(cast, state), origin=origin)

    begun: list[dict[str, Any]] = [{"key": jax.random.key(0)}]
    begun += [{"state": here(before.state)} for before in reference[:-1]]
    chosen = begun[every - 1 :: every]
    return [tt_jax.rollout(dit, case.text, **start, **case.request(1)) for start in chosen]


def judge(case: Case) -> None:
    """Prints a row of each arm."""
    reference = free(case, plain(case, jnp.bfloat16))
    wanted = Made.of(reference)
    acted = f"{wanted.triggered.sum()} of {wanted.triggered.size}"
    for name, make in arms(case).items():
        dit = make()
        cells = []
        for outs in (forced(case, dit, reference), free(case, dit)):
            got = Made.of(outs)
            psnr = got.psnr(wanted)
            chunk = 1 + int(np.argmin(psnr.min(1)))
            cells += [f"{psnr.min():.1f} (chunk {chunk})", f"{np.median(psnr):.1f}"]
            differ = (got.triggered != wanted.triggered).sum()
            tokens = (got.dropped != wanted.dropped).sum()
            cells += [f"{differ}; {tokens} of {wanted.dropped.sum()}"]
        row(case.name, name, *cells, acted)


def layers(case: Case, every: int) -> None:
    """Prints the worst of some chunks in the same context, by what is rounded.

    In float32: the rounding of bfloat16 would hide a single layer's.
    """
    reference = free(case, plain(case, jnp.float32))
    wanted, numbers = Made.of(reference[every - 1 :: every]), range(case.config.layers)

    def worst(groups: Sequence[str], layers: Sequence[int]) -> str:
        dit = some(case, groups, layers, jnp.float32)
        got = Made.of(forced(case, dit, reference, every))
        return f"{got.psnr(wanted).min():.1f}"

    row(f"{case.name}: rounded", *GROUPS, "all three")
    row(*["---"] * 5)
    rows = {f"block {number + 1} of {len(numbers)}": [number] for number in numbers}
    for name, chosen in (rows | {"all blocks": numbers}).items():
        row(name, *(worst([group], chosen) for group in GROUPS), worst(list(GROUPS), chosen))
    print()


def arms(case: Case) -> dict[str, Callable[[], DiT]]:
    """What is compared with the reference."""
    every = range(case.config.layers)
    made = {"int8, first and last block not": lambda: shipped(case)} if len(every) > 2 else {}
    if case.config is not TOY:
        made["int8, all blocks"] = lambda: some(case, list(GROUPS), every)
        made["float32"] = lambda: plain(case, jnp.float32)
    return made


def main(argv: list[str]) -> None:
    """Prints the tables, row by row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks quantize", description=__doc__)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2, help="samples of each model")
    parser.add_argument("--every", type=int, default=5, help="so many chunks in the second table")
    parser.add_argument("--toy", action="store_true", help="a random model of width 48 alone")
    options = parser.parse_args(argv)
    size = options.chunks, options.batch

    if options.toy:
        cases = [random("toy", TOY, *size)]
    else:
        cases = [embedded(*size), random("random, Wan-1.3B's width", DiTConfig(layers=2), *size)]
    head = ("worst chunk, dB", "median, dB", "decisions; dropped tokens that differ")
    row("model", "", *head, *(f"free-running: {name}" for name in head), "TokenTrim acted")
    row(*["---"] * 9)
    for case in cases:
        judge(case)
    print()
    for case in cases:
        layers(case, options.every)


def row(*cells: str) -> None:
    """Prints one row of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)
