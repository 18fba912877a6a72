"""Cache policies against plain NumPy loops, written from their descriptions: what has no recording.

No transformer: each pass of each layer has random queries, keys and values of its own, and what it
attends to is compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tt_jax.cache import (
    DeepForcing,
    FadeMem,
    LongLive,
    MemRope,
    RelaxForcing,
    TetherCache,
    Window,
    buffer,
)

LAYERS, HEADS, WIDTH, ROWS, COLUMNS, CHUNK = 2, 2, 12, 2, 2, 3
PLACES = ROWS * COLUMNS


# --- the loops' own tools -----------------------------------------------------------------------


def rotate(x, times, places=None, spread=0.0):
    """`[T, N, H]` of tokens at the given times and places of a frame (all in order if left out)."""
    if places is None:
        times, places = np.repeat(times, PLACES), np.tile(np.arange(PLACES), len(times))
    side = 2 * (WIDTH // 6)
    eps = np.random.default_rng(0).uniform(-1, 1, HEADS)
    angle = np.zeros((len(x), HEADS, WIDTH // 2))
    for head in range(HEADS):
        axes = ((WIDTH - 2 * side, times, 1e4 * (1 + spread * eps[head])),)
        axes += ((side, places // COLUMNS, 1e4), (side, places % COLUMNS, 1e4))
        parts = [np.outer(at, base ** (-np.arange(0, d, 2) / d)) for d, at, base in axes]
        angle[:, head] = np.concatenate(parts, axis=1)
    pair = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    return np.stack([pair.real, pair.imag], axis=-1).reshape(x.shape)


def attend(q, k, v, bias=0.0):
    logits = np.einsum("tnh,snh->nts", q, k) / WIDTH**0.5 + bias
    weight = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.einsum("nts,snh->tnh", weight / weight.sum(axis=-1, keepdims=True), v)


def frame(x, i):
    return x[i * PLACES : (i + 1) * PLACES]


class Loop:
    """One layer's past as lists; `read` and `finish` are what a policy says."""

    def read(self, q, k, v, first):
        past, own, spread = self.past(first), self.own(), self.policy.base_spread
        keys = [rotate(key, *at, spread=spread) for key, _, at in past]
        bias = np.zeros((len(past) + CHUNK) * PLACES)
        bias[PLACES : len(past) * PLACES] = np.log(self.policy.past_weight)
        return attend(
            rotate(q, own, spread=spread), np.concatenate([*keys, rotate(k, own, spread=spread)]),
            np.concatenate([*(value for _, value, _ in past), v]), bias,
        )  # fmt: skip


# --- the driver ---------------------------------------------------------------------------------


def compare(policy, loops, chunks, at_switch=None):
    """Drives a policy and a loop for each layer with the same arrays; compares all passes."""
    rng = np.random.default_rng(7)
    context = buffer.empty(
        layers=LAYERS, batch=1, slots=policy.slots(CHUNK), tokens=PLACES, heads=HEADS,
        head_dim=WIDTH, token_dim=3, sink=policy.sinks, dtype=jnp.float32,
    )  # fmt: skip
    context = policy.start(context, CHUNK)
    grid, shape = (ROWS, COLUMNS), (3, LAYERS, 1, CHUNK * PLACES, HEADS, WIDTH)

    def through(past, read, qkv):
        def layer(_, inputs):
            return None, read(*inputs)

        return jax.lax.scan(layer, None, (past, *qkv))[1]

    @jax.jit
    def step(context, number, noisy, clean, tokens):
        context = policy.begin(
            context, number, CHUNK, grid, lambda past, read: through(past, read, noisy)[1]
        )
        past, read = policy.read(context, context.valid, number, CHUNK, grid)
        one, _ = through(past, read, noisy)
        two, own = through(past, read, clean)
        frames = number + jnp.arange(CHUNK)
        return one, two, policy.accept(context, own, tokens, frames)

    for chunk in range(chunks):
        if at_switch and chunk in at_switch:
            context = at_switch[chunk](context, rng, through)
        noisy, clean = rng.standard_normal((2, *shape), np.float32)
        tokens = rng.standard_normal((1, CHUNK, PLACES, 3), np.float32)
        one, two, context = step(context, jnp.asarray(CHUNK * chunk), noisy, clean, tokens)
        for layer, loop in enumerate(loops):
            for first, ours, qkv in ((True, one, noisy), (False, two, clean)):
                want = loop.read(*(x[layer, 0] for x in qkv), first)
                np.testing.assert_allclose(
                    ours[layer, 0], want, atol=2e-5, err_msg=f"chunk {chunk}, layer {layer}"
                )
        for layer, loop in enumerate(loops):
            loop.finish(*(x[layer, 0] for x in clean))
    return context


# --- loops --------------------------------------------------------------------------------------


class PlainWindow(Loop):
    """The newest frames after the sinks, all counted from 0."""

    def __init__(self, policy):
        self.policy, self.kept = policy, []

    def past(self, first):
        return [(k, v, ([i],)) for i, (k, v) in enumerate(self.kept)]

    def own(self):
        return len(self.kept) + np.arange(CHUNK)

    def finish(self, q, k, v):
        self.kept += [(frame(k, i), frame(v, i)) for i in range(CHUNK)]
        while len(self.kept) > self.policy.frames - CHUNK:
            del self.kept[self.policy.sink]


class PlainMemory(PlainWindow):
    """MemRoPE's adaptive memories, at indices 3 and 4."""

    begun = False

    def finish(self, q, k, v):
        self.kept += [(frame(k, i), frame(v, i)) for i in range(CHUNK)]
        if len(self.kept) <= 9:
            return
        gone, self.kept = self.kept[5:8], self.kept[:5] + self.kept[8:]
        m = [np.mean([x[j] for x in gone], axis=0) for j in (0, 1)]
        if not self.begun:
            self.kept[3], self.kept[4], self.begun = tuple(m), tuple(m), True
            return
        apart = np.linalg.norm(m[0] - self.kept[4][0], axis=-1).mean(axis=1)
        a = 0.01 + apart / (apart.max() + 1e-8) * (0.5 - 0.01)
        a = a[:, None, None]
        self.kept[4] = tuple(a * m[j] + (1 - a) * self.kept[4][j] for j in (0, 1))
        self.kept[3] = tuple(0.01 * m[j] + 0.99 * self.kept[3][j] for j in (0, 1))


class PlainDeep(Loop):
    """Tokens as [key, value, time, place, count]."""

    def __init__(self, policy):
        self.policy, self.tokens, self.chunk, self.sink_at = policy, [], 0, 0
        self.compressed = False
        self.queries = np.zeros((0, HEADS, WIDTH))

    def own(self):
        return CHUNK * self.chunk + np.arange(CHUNK)

    def read(self, q, k, v, first):
        p = self.policy
        q = rotate(q, self.own())
        sink = p.sink * PLACES
        # By frames, as ours: chosen tokens count as the frames whose places they take.
        held = len({t[2] for t in self.tokens if not t[4]})
        held += p.budget - p.sink - p.recent if self.compressed else 0
        if first and held + CHUNK > p.frames:
            self.compressed = True
            older = (p.recent - CHUNK) * PLACES
            middle = self.tokens[sink : len(self.tokens) - older]
            queries = np.concatenate([self.queries, q])
            scored = []
            for token in middle:
                key = rotate(token[0][None], np.array([token[2]]), np.array([token[3]]))[0]
                scored.append(np.einsum("tnh,nh->", queries, key))
            able = [i for i, t in enumerate(middle) if t[4] < p.reuse]
            able.sort(key=lambda i: -scored[i])
            room = (p.budget - p.sink - p.recent) * PLACES
            chosen = [middle[i] for i in sorted(able[:room])]
            for token in chosen:
                token[4] += 1
            self.tokens = self.tokens[:sink] + chosen + self.tokens[len(self.tokens) - older :]
            self.sink_at = CHUNK * self.chunk - p.budget
        moved = [
            (t[0], self.sink_at + i // PLACES if i < sink else t[2], t[3])
            for i, t in enumerate(self.tokens)
        ]
        keys = [rotate(x[None], np.array([at]), np.array([place]))[0] for x, at, place in moved]
        keys = np.concatenate([np.reshape(keys, (-1, HEADS, WIDTH)), rotate(k, self.own())])
        values = np.concatenate([np.reshape([t[1] for t in self.tokens], (-1, HEADS, WIDTH)), v])
        return attend(q, keys, values)

    def finish(self, q, k, v):
        older = (self.policy.recent - CHUNK) * PLACES
        self.queries = rotate(q, self.own())[-older:]
        for i in range(CHUNK * PLACES):
            self.tokens.append([k[i], v[i], CHUNK * self.chunk + i // PLACES, i % PLACES, 0])
        self.chunk += 1


class PlainRelax(Loop):
    """An archive that overflows; the choice is the first layer's."""

    def __init__(self, policy, first=None):
        self.policy, self.first, self.archive, self.chosen = policy, first or self, [], None

    def past(self, _):
        p = self.policy
        shown = [*range(p.sink), self.first.chosen, len(self.archive) - 1]
        if len(self.archive) <= p.sink + 1:
            shown = list(range(len(self.archive)))
        return [(*self.archive[s], ([i],)) for i, s in enumerate(shown)]

    def own(self):
        return len(self.past(None)) + np.arange(CHUNK)

    def finish(self, q, k, v):
        p = self.policy
        self.archive += [(frame(k, i), frame(v, i)) for i in range(CHUNK)]
        while len(self.archive) > p.archive - CHUNK:
            del self.archive[p.sink]
        n = len(self.archive) - p.sink - 1
        if n < 1:
            return
        a = n // 2
        m = min(p.candidates, n - a)
        points = np.linspace(a, n - 1, m + 1)[:-1] if m > 1 else [a]

        def prototype(keys):
            mean = keys.mean(axis=(0, 1))
            return mean / np.linalg.norm(mean)

        sinks = prototype(np.concatenate([self.archive[i][0] for i in range(p.sink)]))
        tail = prototype(self.archive[-1][0])
        slots = [p.sink + int(x) for x in points]
        own = [prototype(self.archive[slot][0]) for slot in slots]
        score = [x @ sinks - p.weight * x @ tail for x in own]
        self.chosen = slots[int(np.argmax(score))]


class PlainTether(Loop):
    def __init__(self, policy):
        self.policy, self.kept, self.count = policy, [], 0  # (key, value, time)

    def past(self, first):
        return [(k, v, ([i],)) for i, (k, v, _) in enumerate(self.kept)]

    def own(self):
        return len(self.kept) + np.arange(CHUNK)

    def finish(self, q, k, v):
        p, size = self.policy, self.policy.frames - CHUNK
        frames = [(frame(k, i), frame(v, i), self.count + i) for i in range(CHUNK)]
        self.count += CHUNK
        before, self.kept = len(self.kept), self.kept + frames
        if len(self.kept) <= size:
            return
        memory, new = self.kept[p.sink : before - 1], self.kept[before - 1 : -1]
        both = memory + new
        logits = [np.einsum("tnh,snh->", q, x[0]) for x in both]
        logits = np.array(logits) / (len(q) * PLACES * HEADS * WIDTH**0.5)
        a = np.exp(logits - logits.max())
        a /= a.sum()
        time = np.array([x[2] for x in both], float)
        s = max(1, 0.5 * (time.max() - time.min() + 1))
        score = []
        for i in range(len(both)):
            near = [np.exp(-abs(time[i] - time[j]) / s) * a[j] for j in range(len(both)) if j != i]
            score.append(a[i] + p.diversity * max(0, 1 - max(near)))
        stay = sorted(np.argsort(-np.array(score), kind="stable")[: size - p.sink - 1])
        trusted = self.kept[: p.sink] + memory
        self.admitted = sum(i >= len(memory) for i in stay)

        def drawn(x, pool):
            mean, deviation = x.mean(axis=0), x.std(axis=0)
            moved = pool.std(axis=0) * (x - mean) / deviation + pool.mean(axis=0)
            return (1 - p.trust) * x + p.trust * moved

        pools = [np.concatenate([x[j] for x in trusted]) for j in (0, 1)]
        chosen = [
            both[i] if i < len(memory)
            else (*(drawn(both[i][j], pools[j]) for j in (0, 1)), both[i][2])
            for i in stay
        ]  # fmt: skip
        self.kept = self.kept[: p.sink] + chosen + [self.kept[-1]]


class PlainFade(Loop):
    def __init__(self, policy):
        self.policy, self.bank, self.count = policy, [], 0  # (key, value, centre, span)

    def past(self, first):
        p, bank = self.policy, self.bank
        if len(bank) < p.bank:
            return [(k, v, ([i],)) for i, (k, v, *_) in enumerate(bank)]
        start = p.frames - CHUNK
        at = {len(bank) - 1 - i: start - 1 - i for i in range(3)} | {0: 0}
        last = 3
        others = range(len(bank) - 4, 0, -1)
        for i in others:
            # As many stay free as there are older ones to come.
            free = range(last + 1, start - (i - 1))
            true = self.count - bank[i][2]
            last = min(free, key=lambda g, true=true: abs(g**p.fade - true**p.fade))
            at[i] = start - last
        return [(k, v, ([at[i]],)) for i, (k, v, *_) in enumerate(bank)]

    def own(self):
        p = self.policy
        full = len(self.bank) == p.bank
        return (p.frames - CHUNK if full else len(self.bank)) + np.arange(CHUNK)

    def finish(self, q, k, v):
        for i in range(CHUNK):
            now = self.count + 1
            self.bank.append((frame(k, i), frame(v, i), float(self.count), 1))
            self.count += 1
            if len(self.bank) <= self.policy.bank:
                continue
            age = [(now - centre) ** self.policy.fade for _, _, centre, _ in self.bank]
            gaps = [age[j] - age[j + 1] for j in range(len(age) - 2)]  # the newest pair never
            j = int(np.argmin(gaps))
            (k1, v1, c1, s1), (k2, v2, c2, s2) = self.bank[j : j + 2]
            w = s1**0.5 / (s1**0.5 + s2**0.5)
            one = (w * k1 + (1 - w) * k2, w * v1 + (1 - w) * v2, (s1 * c1 + s2 * c2) / (s1 + s2))
            one = (k1, v1, 0.0) if j == 0 else one
            self.bank[j : j + 2] = [(*one, s1 + s2)]


# --- tests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "loop"),
    [
        (Window(9, 1, relative=True), PlainWindow),
        (Window(9, 1, relative=True, past_weight=0.3, base_spread=0.8), PlainWindow),
        (TetherCache(12, 1, past_weight=0.3, base_spread=0.8), PlainTether),
        (MemRope(summary="none"), PlainWindow),
        (MemRope(summary="adaptive"), PlainMemory),
        (DeepForcing(frames=12, sink=3, budget=8, recent=4), PlainDeep),
        (DeepForcing(frames=12, sink=3, budget=8, recent=4, reuse=1), PlainDeep),
        (TetherCache(), PlainTether),
        (TetherCache(frames=12, sink=1), PlainTether),
        (FadeMem(), PlainFade),
        (FadeMem(frames=12, bank=6), PlainFade),
    ],
    ids=repr,
)
def test_plain_loop(policy, loop):
    loops = [loop(policy) for _ in range(LAYERS)]
    compare(policy, loops, 12)
    if isinstance(policy, TetherCache):
        assert any(one.admitted for one in loops)
    if isinstance(policy, DeepForcing) and policy.reuse == 1:
        assert max(t[4] for t in loops[0].tokens) == 1


@pytest.mark.parametrize("archive", [15, 16])
def test_relax_forcing_with_an_archive_that_overflows(archive):
    policy = RelaxForcing(archive=archive)
    first = PlainRelax(policy)
    compare(policy, [first, PlainRelax(policy, first)], 12)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("keep_sink", "chunk"), [(True, 3), (False, 3), (True, 6), (False, 6)])
def test_long_live_makes_its_cache_anew(keep_sink, chunk, relative):
    """Sinks stay only if asked to, and not before the video is longer than the window."""
    policy = LongLive(frames=9, sink=2, keep_sink=keep_sink, relative=relative)
    loops = [PlainLongLive(policy) for _ in range(LAYERS)]
    shape = (3, LAYERS, 1, policy.frames * PLACES, HEADS, WIDTH)

    def switch(context, rng, through):
        qkv = rng.standard_normal(shape, np.float32)
        outs = []

        def encode(tokens, past, read):
            out, own = through(past, read, qkv)
            outs.append(out)
            return own

        context = policy.switch(
            context, jnp.asarray(CHUNK * chunk), "recache", encode, (ROWS, COLUMNS)
        )
        for layer, loop in enumerate(loops):
            want, there = loop.recache(*(x[layer, 0] for x in qkv))
            np.testing.assert_allclose(outs[0][layer, 0][there:], want[there:], atol=2e-5)
        return context

    compare(policy, loops, chunk + 4, {chunk: switch})


class PlainLongLive(Loop):
    """Frames as (key, value, number)."""

    def __init__(self, policy):
        self.policy, self.kept, self.count = policy, [], 0

    def past(self, first):
        relative = self.policy.relative
        return [(k, v, ([i if relative else n],)) for i, (k, v, n) in enumerate(self.kept)]

    def own(self):
        return (len(self.kept) if self.policy.relative else self.count) + np.arange(CHUNK)

    def finish(self, q, k, v):
        self.kept += [(frame(k, i), frame(v, i), self.count + i) for i in range(CHUNK)]
        self.count += CHUNK
        while len(self.kept) > self.policy.frames - CHUNK:
            del self.kept[self.policy.sink]

    def recache(self, q, k, v):
        """With what a pass over the latest frames made of them; that pass, from which row on."""
        p = self.policy
        numbers = self.count - p.frames + np.arange(p.frames)
        new = [(frame(k, i), frame(v, i), n) for i, n in enumerate(numbers) if n >= 0]
        recent = new[p.sink - len(self.kept) :]
        stays = p.keep_sink and self.count > p.frames
        old, seen = (self.kept[: p.sink], new[p.sink :]) if stays else ([], new)
        shift = max(numbers[0], 0) if p.relative else 0
        keys = [rotate(x[0], [i]) for i, x in enumerate(old)]
        keys += [rotate(x[0], [x[2] - shift]) for x in seen]
        values = [x[1] for x in old + seen]
        out = attend(rotate(q, numbers - shift), np.concatenate(keys), np.concatenate(values))
        self.kept = (old or new[: p.sink]) + recent
        return out, PLACES * int(np.sum(numbers < 0))
