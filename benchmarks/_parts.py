"""The parts of `benchmarks device`: each measures one thing and returns numbers for JSON.

Milliseconds are a median with the lowest and the highest, `[median, lowest, highest]`.
"""

import dataclasses
import functools
import importlib.util
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tt_jax
from benchmarks._timing import interleaved
from tt_jax._rollout import _begin, _copy, _rollout
from tt_jax.checkpoint import abstract
from tt_jax.frames import decode as decode_some
from tt_jax.models.dit import DiTConfig
from tt_jax.models.tiny_vae import TinyVAEConfig
from tt_jax.models.vae import VAEConfig
from tt_jax.nn.attention import attention as attend
from tt_jax.nn.attention import choice
from tt_jax.planning.operations import cost

FRAMES = 12  # of a chunk, decoded
PASSES = 5  # of a chunk: four steps and the context's
IDEAL = 790e12  # operations a second that a large product makes of an H100's peak of 989e12
Part = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        dit: sizes of the transformer.
        vae: of the VAE.
        tiny: of the tiny VAE.
        grid: of the latents.
        side: of the matrices whose product is the ceiling.
        lengths: chunks at which a rollout is looked at.
        repeats: timed calls.
    """

    dit: DiTConfig
    vae: VAEConfig
    tiny: TinyVAEConfig
    grid: tuple[int, int]
    side: int
    lengths: tuple[int, ...]
    repeats: int

    @property
    def tokens(self) -> int:
        """Of a latent frame."""
        return self.grid[0] * self.grid[1] // self.dit.patch**2


def random_module(name: str, config: Any, dtype: Any) -> Any:
    """A module with random weights of a small deviation."""
    graph, params = nnx.split(abstract(name, config, dtype))
    leaves, structure = jax.tree.flatten(params)

    @jax.jit
    def draw() -> list[jax.Array]:
        keys = jax.random.split(jax.random.key(0, impl="rbg"), len(leaves))
        pairs = zip(keys, leaves, strict=True)
        return [0.02 * jax.random.normal(k, x.shape, x.dtype) for k, x in pairs]

    return nnx.merge(graph, jax.tree.unflatten(structure, draw()))


def milliseconds(seconds: Sequence[float], count: int = 1) -> list[float]:
    """Median, lowest and highest of calls that did a thing so many times."""
    numbers = statistics.median(seconds), min(seconds), max(seconds)
    return [round(1e3 * number / count, 3) for number in numbers]


def device(asked: Settings) -> Part:
    """The device, its driver and clocks."""
    first = jax.devices()[0]
    part: Part = {"platform": first.platform, "kind": first.device_kind}
    limit = (first.memory_stats() or {}).get("bytes_limit")
    part["memory_gb"] = round(limit / 1e9, 2) if limit else None
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    try:
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        part["nvidia-smi"] = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        part["nvidia-smi"] = None
    return part


def matmul(asked: Settings) -> Part:
    """What a large bfloat16 product makes: the ceiling of all else."""
    square = jnp.ones((asked.side, asked.side), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    seconds = interleaved({"product": lambda: product(square, square)}, 3 * asked.repeats)
    best = min(seconds["product"])
    return {"side": asked.side, "tflops": round(2 * asked.side**3 / best / 1e12, 3)}


def attention(asked: Settings) -> Part:
    """A chunk's self-attention over a full window, by each implementation; TFLOP/s."""
    dit, own, past = asked.dit, 3 * asked.tokens, 18 * asked.tokens
    shape = (1, own + past, dit.heads, dit.head_dim)
    k = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    q, mask = k[:, :own], jnp.ones((1, 1, own + past), bool).at[..., :own].set(False)
    names = {"gpu": ["cudnn", "xla"], "tpu": ["flash", "xla"]}.get(jax.default_backend(), ["xla"])
    arms: dict[str, Callable[[], Any]] = {}
    for impl in names:
        plain = jax.jit(lambda q, k, mask, impl=impl: attend(q, k, k, None, impl))
        masked = jax.jit(lambda q, k, mask, impl=impl: attend(q, k, k, mask, impl))
        arms[impl] = lambda f=plain: f(q, k, mask)
        arms[f"{impl}, keys pruned"] = lambda f=masked: f(q, k, mask)
    work = 4 * own * (own + past) * dit.dim
    rows = {
        name: {"ms": milliseconds(s), "tflops": round(work / statistics.median(s) / 1e12, 4)}
        for name, s in interleaved(arms, asked.repeats).items()
    }
    return {"queries": own, "keys": own + past, "taken": choice(q, k)._asdict(), "rows": rows}


class Rollouts:
    """Chunks of a rollout whose window is full, from random weights."""

    def __init__(self, asked: Settings, strategy: tt_jax.SelfForcing, dtype: Any = jnp.bfloat16):
        self.grid, self.strategy = asked.grid, strategy
        self.graph, self.params = nnx.split(random_module("dit", asked.dit, dtype))
        self.text = jnp.ones((1, asked.dit.text_len, asked.dit.text_dim), dtype)
        self.key = jax.random.key(0)

    def state(self) -> Any:
        """Before the first chunk."""
        key, more = self.key, (self.grid, self.strategy, None)
        begin = jax.jit(lambda params, text, key: _begin(self.graph, params, text, key, *more))
        return begin(self.params, self.text, key)

    def program(self, trim: tt_jax.TokenTrim) -> Callable[[Any], Any]:
        """A chunk, compiled; takes the memory of the state that it is given."""
        arguments = (self.grid, self.strategy, trim, None)
        state = jax.eval_shape(self.state)
        compiled = _rollout.lower(
            self.graph, self.params, self.text, 1, *arguments, state, False
        ).compile()
        return lambda state, trim=trim: compiled(self.params, self.text, trim, None, state)

    def full(self, chunk: Callable[[Any], Any]) -> Any:
        """The state when the window is full."""
        state = self.state()
        for _ in range(-(-self.strategy.slots // self.strategy.chunk) + 1):
            state = chunk(state).state
        return state

    def operations(self) -> int:
        """Of a chunk without intervention, counted from shapes."""

        def chunk(params: Any, text: Any, state: Any) -> Any:
            settings = (1, self.grid, self.strategy, tt_jax.TokenTrim.off(), None)
            return _rollout(self.graph, params, text, *settings, state, False)

        with jax.default_device(jax.devices("cpu")[0]):
            return cost(chunk, self.params, self.text, jax.eval_shape(self.state)).operations


@functools.cache
def usual(asked: Settings) -> tuple[Rollouts, Callable[[Any], Any]]:
    """Self Forcing's rollout, and a chunk with TokenTrim: for two parts, compiled once."""
    made = Rollouts(asked, tt_jax.SelfForcing())
    return made, made.program(tt_jax.TokenTrim())


def tokentrim(asked: Settings) -> Part:
    """Milliseconds a chunk with TokenTrim off, never and always triggering."""
    made, on = usual(asked)
    off = made.program(tt_jax.TokenTrim.off())
    state = made.full(off)
    trims = {"never triggers": 1e9, "triggers each chunk": -1e9}
    # TokenTrim's own program for both: lam is data.
    arms: dict[str, Callable[[], Any]] = {"off": lambda: off(_copy(state)).latents}
    for name, lam in trims.items():
        trim = tt_jax.TokenTrim(lam=lam)
        arms[name] = lambda trim=trim: on(_copy(state), trim).latents  # pyright: ignore
    seconds = interleaved(arms, asked.repeats)
    work, base = made.operations(), statistics.median(seconds["off"])
    part: Part = {"tflop_of_a_chunk": round(work / 1e12, 4)}
    for name, values in seconds.items():
        middle = statistics.median(values)
        part[name] = {
            "ms": milliseconds(values),
            "frames_a_second": round(FRAMES / middle, 2),
            "relative_to_off": round(middle / base, 3),
            "share_of_ideal": round(work / middle / IDEAL, 4),
        }
    return part


def sink(asked: Settings) -> Part:
    """A short window with sinks, TokenTrim off."""
    made = Rollouts(asked, tt_jax.SelfForcing(window=12, sink=3))
    chunk = made.program(tt_jax.TokenTrim.off())
    state = made.full(chunk)
    seconds = interleaved({"chunk": lambda: chunk(_copy(state)).latents}, asked.repeats)["chunk"]
    return {
        "ms": milliseconds(seconds),
        "frames_a_second": round(FRAMES / statistics.median(seconds), 2),
    }


def decoders(asked: Settings) -> Part:
    """A chunk decoded in mid-video, by the VAE and by the tiny one."""
    channels = asked.dit.channels
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, *asked.grid, channels)))
    latents = latents.astype(jnp.float32)
    part: Part = {}
    for name, config in (("vae", asked.vae), ("tiny_vae", asked.tiny)):
        graph, weights = nnx.split(random_module(name, config, jnp.bfloat16))
        _, cache = decode_some(graph, weights, None, latents[:, :1])

        def decode(graph: Any = graph, weights: Any = weights, cache: Any = cache):
            frames = []
            for i in range(3):
                some, cache = decode_some(graph, weights, cache, latents[:, i : i + 1])
                frames.append(some)
            return frames

        part[name] = {"ms": milliseconds(interleaved({name: decode}, asked.repeats)[name])}
    return part


def torch_layers(asked: Settings) -> Part:
    """A chunk's five passes through the same layers in torch, SDPA, compiled on a GPU."""
    if not importlib.util.find_spec("torch"):
        return {"left out": "torch isn't here"}
    import torch

    from benchmarks._torch import sdpa_pass

    cuda = jax.default_backend() == "gpu" and torch.cuda.is_available()
    place = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    one_pass = sdpa_pass(asked.dit, 18, 3, asked.grid, *place)

    def chunk() -> None:
        for _ in range(PASSES):
            one_pass()

    seconds = interleaved({"torch": chunk}, asked.repeats)["torch"]
    return {"version": torch.__version__, "device": place[0], "ms": milliseconds(seconds)}


def length(asked: Settings) -> Part:
    """Milliseconds a chunk as a video grows; medians of the last eight before each length."""
    made, chunk = usual(asked)
    state, seconds = made.state(), []
    for _ in range(max(asked.lengths)):
        started = time.perf_counter()
        out = chunk(state)
        jax.block_until_ready(out.latents)
        seconds.append(time.perf_counter() - started)
        state = out.state
    return {
        f"ms at chunk {count}": milliseconds(seconds[max(0, count - 8) : count])
        for count in asked.lengths
    }


def precision(asked: Settings) -> Part:
    """One chunk in bfloat16 here against float32 on the CPU, the same weights: relative L2."""
    small = dataclasses.replace(asked, grid=(min(16, asked.grid[0]), min(16, asked.grid[1])))
    strategy = tt_jax.SelfForcing(window=6)
    here = Rollouts(small, strategy)
    off = tt_jax.TokenTrim.off()
    got = np.asarray(here.program(off)(here.state()).latents, np.float32)
    with jax.default_device(jax.devices("cpu")[0]):
        there = Rollouts.__new__(Rollouts)
        there.grid, there.strategy, there.graph = small.grid, strategy, here.graph
        host = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float32)), here.params)
        there.params, there.text = host, jnp.ones(here.text.shape, jnp.float32)
        there.key = jax.random.key(0)
        want = np.asarray(there.program(off)(there.state()).latents)
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return {"grid": list(small.grid), "relative_l2": round(error, 6)}
