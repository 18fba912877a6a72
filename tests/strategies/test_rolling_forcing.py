"""Rolling Forcing: recorded rollouts, a plain loop in NumPy, and the invariants of the design."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import random_dit
from parity import converted, distance
from safetensors.numpy import load_file

from convert import dit as names
from tt_jax import RollingForcing, SelfForcing, TokenTrim, rollout
from tt_jax._rollout import _begin, _rollout, stream
from tt_jax.models.dit import DiTConfig
from tt_jax.strategies.schedule import time_sinusoid, warp

GRID = (8, 8)
CONFIG = DiTConfig(dim=48, ffn_dim=64, layers=2, heads=2, channels=4, text_dim=16, text_len=6)
STRATEGY = RollingForcing()
# 16 tokens, lambda far below any severity: every block from the fourth on triggers.
EAGER = TokenTrim(p=0.2, lam=-100.0, resample_noise=True)


@pytest.fixture(scope="module")
def dit():
    return random_dit(CONFIG)


@pytest.fixture(scope="module")
def text():
    """Two prompts, zero-padded."""
    rows = jax.random.normal(jax.random.key(1), (2, CONFIG.text_len, CONFIG.text_dim))
    return rows.at[0, 4:].set(0).at[1, 2:].set(0)


def run(dit, text, chunks=9, key=0, trim=EAGER, **more):
    return rollout(
        dit, text, jax.random.key(key), chunks=chunks, grid=GRID, strategy=STRATEGY, trim=trim,
        **more,
    )  # fmt: skip


def records(out):
    return {name: np.asarray(x) for name, x in vars(out).items() if name != "state"}


def assert_equal(a, b):
    for name, value in records(a).items():
        np.testing.assert_array_equal(value, np.asarray(getattr(b, name)), err_msg=name)


def assert_close(a, b):
    """Latents within 1e-6, equal triggers and drops."""
    assert distance(a["latents"], b["latents"]) <= 1e-6
    np.testing.assert_array_equal(a["triggered"], b["triggered"])
    np.testing.assert_array_equal(a["pruned"], b["pruned"])


def rows(out, chunks):
    """The given blocks of a rollout, a slice."""
    part = {name: x[:, chunks] for name, x in records(out).items() if name != "latents"}
    frames = slice(*(None if end is None else 3 * end for end in (chunks.start, chunks.stop)))
    return part | {"latents": np.asarray(out.latents)[:, frames]}


# --- the recorded rollout -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parity
def test_recorded_rollout(golden, parity_record):
    arrays = load_file(golden / "rf_rollout_9blocks.safetensors")
    config = DiTConfig(dim=192, ffn_dim=384, layers=4, heads=4, text_dim=64, text_len=32)
    weights = load_file(golden / "dit_small_weights.safetensors")
    model = converted("dit", names.native, weights, config)
    noise = np.zeros((9, 5, 1, 3, 8, 12, 16), np.float32)
    first = arrays["noise_init"].reshape(9, 3, 16, 8, 12)
    noise[:, 0, 0] = np.moveaxis(first, 2, -1)
    for window, blocks in enumerate(arrays["noise_used_block"]):
        for position, block in enumerate(blocks):
            if block >= 0:
                used = np.moveaxis(arrays["noise_used"][window, position], 1, -1)
                noise[block, window - block + 1, 0] = used
    out = rollout(
        model, jnp.asarray(arrays["prompt_embeds"]), jax.random.key(0), chunks=9, grid=(8, 12),
        strategy=STRATEGY, trim=TokenTrim.off(), noise=jnp.asarray(noise),
    )  # fmt: skip
    expected = np.moveaxis(arrays["latents"], 2, -1)
    for block in range(9):
        part = slice(3 * block, 3 * block + 3)
        value = distance(out.latents[:, part], expected[:, part])
        size = "4 layers, width 192"
        parity_record(f"Rolling Forcing, block {block}", "recorded", size, value, 1e-5)


# --- a plain loop -------------------------------------------------------------------------------


class Plain:
    """One sample's transformer in NumPy, float64: attends to exactly the keys it is given."""

    def __init__(self, dit, text):
        tree = nnx.to_pure_dict(nnx.state(dit))
        self.p = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
        self.config = dit.config
        self.rows = self.mlp(self.p["text_embedding"], text, self.gelu)

    def silu(self, x):
        return x / (1 + np.exp(-x))

    def gelu(self, x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def linear(self, p, x):
        return x @ p["kernel"] + p["bias"]

    def mlp(self, p, x, act):
        return self.linear(p["fc2"], act(self.linear(p["fc1"], x)))

    def norm(self, x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def head(self, p, which, x):
        """Queries or keys, normed, or values; `[T, N, H]`."""
        x = self.linear(p[which], x)
        if which != "v":
            scale = p[f"norm_{which}"]["scale"]
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
        return x.reshape(len(x), self.config.heads, -1)

    def attend(self, p, q, k, v):
        logits = np.einsum("tnh,snh->nts", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear(p["o"], np.einsum("nts,snh->tnh", weights, v).reshape(len(q), -1))

    def rotate(self, x, frames):
        """By absolute frames, of 4x4 tokens each."""
        side = 2 * (self.config.head_dim // 6)
        widths = (self.config.head_dim - 2 * side, side, side)
        axes = np.meshgrid(frames, np.arange(4), np.arange(4), indexing="ij")
        angle = np.concatenate(
            [
                axis.reshape(-1, 1) * 10000.0 ** (-np.arange(0, d, 2) / d)
                for axis, d in zip(axes, widths, strict=True)
            ],
            axis=1,
        )[:, None]
        pair = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
        return np.stack([pair.real, pair.imag], axis=-1).reshape(x.shape)

    def __call__(self, x, sigmas, frames, past):
        """Flow, and each layer's un-rotated keys and values; `past`: each layer's rotated ones."""
        count, p = len(x), self.p
        tokens = x.reshape(count, 4, 2, 4, 2, -1).swapaxes(2, 3).reshape(count * 16, -1)
        y = self.linear(p["patch_embedding"], tokens)
        sinusoid = np.asarray(time_sinusoid(np.repeat(sigmas, 16)), np.float64)
        e = self.mlp(p["time_embedding"], sinusoid, self.silu)
        e0 = self.linear(p["time_projection"], self.silu(e)).reshape(len(y), 6, -1)
        kv = []
        for layer in range(self.config.layers):
            block = jax.tree.map(lambda a, layer=layer: a[layer], p["blocks"])
            m = (e0 + block["modulation"]).swapaxes(0, 1)
            own, cross = block["self_attn"], block["cross_attn"]
            z = self.norm(y) * (1 + m[1]) + m[0]
            k, v = self.head(own, "k", z), self.head(own, "v", z)
            kv.append((k, v))
            keys = np.concatenate([*(part[layer][0] for part in past), self.rotate(k, frames)])
            values = np.concatenate([*(part[layer][1] for part in past), v])
            q = self.rotate(self.head(own, "q", z), frames)
            y = y + m[2] * self.attend(own, q, keys, values)
            norm = block["norm_cross"]
            q = self.head(cross, "q", self.norm(y) * norm["scale"] + norm["bias"])
            k, v = self.head(cross, "k", self.rows), self.head(cross, "v", self.rows)
            y = y + self.attend(cross, q, k, v)
            z = self.norm(y) * (1 + m[4]) + m[3]
            y = y + m[5] * self.mlp(block["ffn"], z, self.gelu)
        shift, scale = (e + p["head_modulation"][:, None])[:2]
        y = self.linear(p["head"], self.norm(y) * (1 + scale) + shift)
        return y.reshape(count, 4, 4, 2, 2, -1).swapaxes(2, 3).reshape(x.shape), kv


def plain_rollout(dit, text, noise, trim, initial=None):
    """One sample's rollout, after the description of Rolling Forcing; entries are deleted.

    noise: `[blocks, steps, F, h, w, C]`. Returns the latents and, by block, what was dropped.
    """
    model = Plain(dit, text)
    levels = warp(STRATEGY.steps)
    first = 0 if initial is None else 1  # number of the first block that is generated
    count = len(noise) + first
    cache, kept, done, dropped, severities = {}, {}, {}, {}, []

    def block_frames(block):
        return np.arange(3 * block, 3 * block + 3)

    def keys_values(blocks, anchor):
        """Of cached blocks, but for what was dropped; the anchor at the frames from `anchor` on."""
        parts = []
        for block in blocks:
            frames = block_frames(block) if block else np.arange(anchor, anchor + 3)
            parts.append(
                [(model.rotate(k, frames)[kept[block]], v[kept[block]]) for k, v in cache[block]]
            )
        return parts

    def clean(block, x0):
        blocks = sorted({*cache, block})[-7:]
        past = keys_values([b for b in blocks if b != block], 0)
        cache[block] = model(x0, np.zeros(3), block_frames(block), past)[1]
        kept[block] = np.ones(48, bool)
        if len(cache) > 8:
            del cache[sorted(cache)[1]]

    def summary(x0):
        return x0.reshape(3, 4, 2, 4, 2, -1).swapaxes(2, 3).reshape(3, 16, -1).mean(axis=0)

    if initial is not None:
        done[0] = initial
        clean(0, initial)
    x = {first + b: noise[b, 0] for b in range(len(noise))}
    for window in range(first, count + 4):
        blocks = list(range(max(first, window - 4), min(count - 1, window) + 1))
        index = [window - block for block in blocks]  # of each block's level
        sigmas = np.repeat([levels[i] for i in index], 3)
        frames = np.concatenate([block_frames(block) for block in blocks])
        room = (21 - len(frames) - 3) // 3
        working = [b for b in sorted(cache) if 0 < b < blocks[0]]
        working = working[len(working) - min(room, len(working)) :]

        def denoise():
            past = []
            if blocks[0] > 0:
                past = keys_values([0, *working], 3 * (blocks[0] - len(working) - 1))
            noisy = np.concatenate([x[block] for block in blocks])
            return noisy - sigmas[:, None, None, None] * model(noisy, sigmas, frames, past)[0]

        x0 = denoise()
        leaving = window - first >= 4
        if leaving and blocks[0] > 0:
            before = summary(done[blocks[0] - 1])
            size = int(np.ceil(trim.p * 16))

            def judge():
                drift = np.linalg.norm(summary(x0[:3]) - before, axis=-1)
                unstable = np.argsort(-drift)[:size]
                return drift[unstable].mean(), unstable

            severity, unstable = judge()
            limit = np.inf
            if len(severities) >= trim.warmup:
                limit = np.mean(severities) + trim.lam * np.std(severities)
            if severity > limit:
                for block in cache:
                    if block > 0:
                        kept[block].reshape(3, 16)[:, unstable] = False
                dropped[blocks[0]] = sorted(unstable)
                x0 = denoise()
                severity, _ = judge()
            severities.append(severity)
        for i, block in enumerate(blocks):
            part = x0[3 * i : 3 * i + 3]
            if index[i] < 4:
                sigma = levels[index[i] + 1]
                x[block] = (1 - sigma) * part + sigma * noise[block - first, index[i] + 1]
        if leaving:
            done[blocks[0]] = x0[:3]
            clean(blocks[0], x0[:3])
        # A clean pass before anything leaves would only be written over.
    return np.concatenate([done[block] for block in range(first, count)]), dropped


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("blocks", [12, 16])
@pytest.mark.parametrize("lam", [1e9, 0.3])
def test_plain_loop(dit, text, blocks, lam, parity_record):
    noise = jax.random.normal(jax.random.key(2), (blocks, 5, 1, 3, *GRID, CONFIG.channels))
    trim = TokenTrim(p=0.2, lam=lam)
    out = run(dit, text[1:], blocks, trim=trim, noise=noise)
    expected, dropped = plain_rollout(dit, np.asarray(text[1]), np.asarray(noise[:, :, 0]), trim)
    name = "Rolling Forcing" + (", trimmed" if lam < 1 else "")
    value = distance(out.latents[0], expected)
    parity_record(name, "NumPy loop", f"{blocks} blocks", value, 1e-5)
    triggered = np.flatnonzero(np.asarray(out.triggered[0]))
    assert list(triggered) == list(dropped)
    assert 0 < len(dropped) < blocks - 3 if lam < 1 else not dropped
    for block, positions in dropped.items():
        got = np.flatnonzero(np.asarray(out.pruned[0, block]).ravel())
        np.testing.assert_array_equal(got, positions)


@pytest.mark.parity
def test_plain_loop_from_a_given_block(dit, text, parity_record):
    noise = jax.random.normal(jax.random.key(2), (12, 5, 1, 3, *GRID, CONFIG.channels))
    initial = jax.random.normal(jax.random.key(3), (1, 3, *GRID, CONFIG.channels))
    trim = TokenTrim(p=0.2, lam=0.3)
    out = run(dit, text[1:], 12, trim=trim, noise=noise, initial=initial)
    rest = (np.asarray(x) for x in (text[1], noise[:, :, 0], initial[0]))
    text_, noise_, initial_ = rest
    expected, dropped = plain_rollout(dit, text_, noise_, trim, initial_)
    value = distance(out.latents[0], expected)
    parity_record("Rolling Forcing, given block", "NumPy loop", "12 blocks", value, 1e-5)
    # The record's first row is of the video's second block.
    assert [1 + b for b in np.flatnonzero(np.asarray(out.triggered[0]))] == list(dropped)
    assert out.measured.all()


# --- invariants ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(dit, text):
    """9 blocks, with triggers."""
    out = run(dit, text)
    assert out.latents.shape == (2, 27, *GRID, CONFIG.channels)
    assert out.drift.shape == (2, 9, 4, 4)
    assert np.asarray(out.triggered).tolist() == [[False] * 3 + [True] * 6] * 2
    assert out.measured.tolist() == [[False] + [True] * 8] * 2
    return out


@pytest.mark.slow
def test_one_compilation_whatever_is_pruned(dit, text, whole):
    before = _rollout._cache_size()
    for lam in (0.5, 1e9):
        run(dit, text, key=3, trim=dataclasses.replace(EAGER, lam=lam))
    assert _rollout._cache_size() == before


@pytest.mark.slow
def test_memory_does_not_grow_with_chunks(dit, text):
    graph, params = nnx.split(dit)
    state = _begin(graph, params, text, jax.random.key(0), GRID, STRATEGY, None)

    def temporary(chunks):
        lowered = _rollout.lower(
            graph, params, text, chunks, GRID, STRATEGY, TokenTrim.off(), None, state, False
        )
        analysis = lowered.compile().memory_analysis()
        return analysis.temp_size_in_bytes, analysis.output_size_in_bytes

    (short, short_out), (long, long_out) = temporary(10), temporary(200)
    # The outputs are once more in the temporaries, where the scan stacks them.
    assert long - short <= (long_out - short_out) + 0.01 * short


def test_poisoned_entries_change_nothing(dit, text, whole):
    context = whole.state.context
    hole = ~context.valid.reshape(1, len(context.valid), -1, 1, 1)
    assert context.valid[:, :3].all() and context.filled.sum() == 15
    assert not context.valid[:, 3:15].all()
    poisoned = dataclasses.replace(
        context, k=jnp.where(hole, 1e4, context.k), v=jnp.where(hole, -1e4, context.v)
    )
    never = dataclasses.replace(EAGER, lam=1e9)
    clean, dirty = (
        run(dit, text, 4, trim=never, state=dataclasses.replace(whole.state, context=c))
        for c in (context, poisoned)
    )
    assert_equal(clean, dirty)


@pytest.mark.slow
def test_blocks_outside_the_video_change_nothing(dit, text, whole):
    """In the first windows: whatever stands where blocks will be, or where none is."""
    graph, params = nnx.split(dit)
    state = _begin(graph, params, text, jax.random.key(0), GRID, STRATEGY, None)
    x0 = jnp.full_like(state.flight.x0, 1e4)
    state = dataclasses.replace(state, flight=dataclasses.replace(state.flight, x0=x0))
    clean = run(dit, text, 5, state=whole.state)  # 9 windows, like what follows
    assert clean.latents.shape[1] == 27
    args = (graph, params, text, 9, GRID, STRATEGY, EAGER, None, state, False)
    dirty = _rollout(*args)
    np.testing.assert_array_equal(dirty.latents[:, 12:], whole.latents[:, :15])


@pytest.mark.slow
@pytest.mark.usefixtures("exact")
def test_off_and_never_triggering_are_plain(dit, text, whole):
    plain = run(dit, text, trim=TokenTrim.off())
    for accept in ("always", "better"):
        never = run(dit, text, trim=dataclasses.replace(EAGER, lam=1e9, accept=accept))
        np.testing.assert_array_equal(plain.latents, never.latents)
        assert not never.triggered.any()
    assert distance(plain.latents, whole.latents) > 1e-4


@pytest.fixture(scope="module")
def longer(dit, text):
    """13 blocks."""
    return run(dit, text, 13)


@pytest.mark.slow
def test_prefix(whole, longer):
    assert_close(rows(longer, slice(0, 5)), rows(whole, slice(0, 5)))
    assert distance(longer.latents[:, 15:27], whole.latents[:, 15:]) > 1e-3


def test_continuing_equals_not_stopping(dit, text, whole, longer):
    """The last 4 blocks are replaced."""
    rest = run(dit, text, 4, state=whole.state)
    assert_close(rows(rest, slice(None)), rows(longer, slice(5, None)))
    assert rest.triggered.all()


def test_continuing_with_recorded_noise(dit, text):
    noise = jax.random.normal(jax.random.key(2), (16, 5, 1, 3, *GRID, CONFIG.channels))
    trim = TokenTrim(p=0.2, lam=0.3)
    all_at_once = run(dit, text[1:], 16, trim=trim, noise=noise)
    start = run(dit, text[1:], 12, trim=trim, noise=noise[:12])
    rest = run(dit, text[1:], 4, trim=trim, noise=noise[8:], state=start.state)
    assert_close(rows(rest, slice(None)), rows(all_at_once, slice(8, None)))


def test_stream_equals_the_scan(dit, text, whole, longer):
    """A Python loop over the same step; it can be left and taken up where its state says."""
    settings = {"grid": GRID, "strategy": STRATEGY, "trim": EAGER}
    parts = list(stream(dit, text, jax.random.key(0), chunks=9, **settings))
    before = _rollout._cache_size()
    assert len(parts) == 9
    for block, part in enumerate(parts):
        assert_close(records(part), rows(whole, slice(block, block + 1)))
    for i in (4, 8):
        assert int(parts[i].state.chunk) == 9
    assert int(parts[0].state.chunk) == 5
    rest = list(stream(dit, text, jax.random.key(0), chunks=4, state=parts[-1].state, **settings))
    assert len(rest) == 8 and _rollout._cache_size() == before
    for block, part in enumerate(rest, start=5):
        assert_close(records(part), rows(longer, slice(block, block + 1)))


def test_neighbours_do_not_matter(dit, text):
    trim = dataclasses.replace(EAGER, lam=0.5)
    one = run(dit, text, trim=trim)
    other = run(dit, text.at[1].set(3.0), trim=trim)
    assert one.triggered.any()
    assert not np.array_equal(one.triggered[1], other.triggered[1])
    for name, value in records(one).items():
        np.testing.assert_array_equal(value[0], np.asarray(getattr(other, name))[0], err_msg=name)


# --- what can't be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunks": 4}, "at least 5 blocks of 3"),
        ({"initial": np.zeros((2, 2, *GRID, 4))}, "from 3 latent frames, not 2"),
        ({"initial": np.zeros((2, 6, *GRID, 4))}, "from 3 latent frames, not 6"),
        ({"trim": TokenTrim(when="first_step")}, '"final"'),
        ({"trim": TokenTrim(prune_sink=True)}, "never prunes its anchor"),
        ({"noise": np.zeros((5, 5, 2, 3, *GRID, 4)), "trim": TokenTrim()}, "noise must be"),
    ],
)
def test_bad_requests(dit, text, changed, message):
    with pytest.raises(ValueError, match=message):
        run(dit, text, **changed)


def test_the_state_of_another_strategy(dit, text):
    other = SelfForcing().start(dit, len(text), GRID, jax.random.key(0))
    with pytest.raises(ValueError, match=r"made with strategy 'SelfForcing'.*'RollingForcing'"):
        run(dit, text, state=other)


@pytest.mark.parametrize("steps", [(1000,), (1000, 900, 800, 700, 600, 500, 400)])
def test_bad_steps(steps):
    with pytest.raises(ValueError, match="2 to 6 steps"):
        RollingForcing(steps=steps)
