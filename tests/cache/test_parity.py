"""Cache policies against rollouts recorded from the code that published them, chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import converted, distance
from safetensors.numpy import load_file

from convert.dit import native
from tt_jax import SelfForcing, TokenTrim, rollout
from tt_jax.cache import (
    DeepForcing,
    EmaSink,
    InfinityRope,
    LongLive,
    MemRope,
    RelaxForcing,
    RollingSink,
    Window,
)
from tt_jax.models.dit import DiTConfig
from tt_jax.strategies.switch import switch

pytestmark = pytest.mark.parity

CONFIG = DiTConfig(dim=192, ffn_dim=384, layers=4, heads=4, text_dim=64, text_len=32)
GRID = (8, 12)
PLACES = 24
SIZE = "4 layers, width 192"


@pytest.fixture(scope="module")
def methods(golden):
    folder = golden.parent / "methods"
    if not folder.is_dir():
        pytest.skip("the rollouts recorded from published cache policies aren't here")
    return folder


@pytest.fixture(scope="module")
def dit(golden):
    return converted("dit", native, load_file(golden / "dit_small_weights.safetensors"), CONFIG)


def recorded_noise(arrays):
    """`[chunks, steps, B, F, h, w, C]` from the initial noise and that of each re-noising."""
    later = arrays["noise_inter"]
    first = arrays["noise_init"].reshape(-1, 1, *later.shape[2:])
    first = np.broadcast_to(first, (len(later), *first.shape[1:]))
    return jnp.asarray(np.moveaxis(np.concatenate([first, later], axis=1), 3, -1)[:, :, None])


def run(dit, arrays, policy, parity_record, switches=None):
    """Makes and compares the chunks one by one; the context after each.

    switches: at which chunk which prompt begins, and how.
    """
    strategy = SelfForcing(cache=policy)
    text = jnp.asarray(arrays.get("prompt_embeds", arrays.get("prompt_embeds.A")))
    name, state, contexts, worst = repr(policy), None, [], 0.0
    for chunk, noise in enumerate(recorded_noise(arrays)):
        if switches and chunk in switches:
            prompt, how = switches[chunk]
            text = jnp.asarray(arrays[f"prompt_embeds.{prompt}"])
            name = f"{policy!r}, {how}"
            state = switch(dit, text, state, grid=GRID, strategy=strategy, how=how)
        out = rollout(
            dit, text, jax.random.key(0), chunks=1, grid=GRID, strategy=strategy,
            trim=TokenTrim.off(), noise=noise[None], state=state,
        )  # fmt: skip
        state = out.state
        want = np.moveaxis(arrays["latents"][:, 3 * chunk : 3 * chunk + 3], 2, -1)
        worst = max(worst, distance(out.latents, want))
        assert worst <= 1e-5, f"{name}, chunk {chunk}: {worst:.2e}"
        contexts.append(jax.tree.map(np.asarray, state.context))
    part = f"{name}, worst of {len(contexts)} chunks"
    parity_record(part, "recorded", SIZE, worst, 1e-5)
    return contexts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "policy"),
    [
        ("ir_plain", InfinityRope()),
        ("ll_plain", Window(12, 3)),
        ("rolling_sink_22chunks", RollingSink()),
        ("reward_forcing_12chunks", EmaSink()),
        ("ll_plain", LongLive()),
        ("ir_plain", Window(6, 1, relative=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value).replace(" ", ""),
)
def test_plain(file, policy, methods, dit, parity_record):
    run(dit, load_file(methods / f"{file}.safetensors"), policy, parity_record)


@pytest.mark.parametrize("how", ["flush", "cut"])
def test_infinity_rope_at_a_switch(how, methods, dit, parity_record):
    arrays = load_file(methods / f"ir_{how}.safetensors")
    run(dit, arrays, InfinityRope(), parity_record, {5: ("B", how)})


@pytest.mark.slow
def test_long_live_at_a_switch(methods, dit, parity_record):
    arrays = load_file(methods / "ll_switch_sink.safetensors")
    run(dit, arrays, LongLive(), parity_record, {7: ("B", "recache")})


@pytest.mark.slow
def test_mem_rope(methods, dit, parity_record):
    arrays = load_file(methods / "mr_ema.safetensors")
    contexts = run(dit, arrays, MemRope(), parity_record)
    # The original takes the frames in when the next chunk begins.
    for layer in (0, 3):
        for name in ("k", "v"):
            got = [getattr(context.memory, name)[layer, 0] for context in contexts[3:11]]
            worst = max(map(distance, got, arrays[f"memory.layer{layer}.{name}"]))
            part = f"MemRope, memories of layer {layer}, {name}, worst of 8 evictions"
            parity_record(part, "recorded", SIZE, worst, 1e-5)


@pytest.mark.slow
def test_relax_forcing(methods, dit, parity_record):
    arrays = load_file(methods / "relax_forcing_16chunks.safetensors")
    policy = RelaxForcing()
    contexts = run(dit, arrays, policy, parity_record)
    shown = [-1] + [int(context.memory["shown"][0]) for context in contexts[:-1]]
    np.testing.assert_array_equal(shown, arrays["history.chosen_frame"])
    for chunk in range(2, len(contexts)):
        archive = jax.tree.map(jnp.asarray, contexts[chunk - 1].memory["archive"])
        newest = jnp.asarray(3 * chunk - 1)
        score, frame = policy._scores(archive, jnp.asarray(2), newest)
        for i, candidate in enumerate(arrays["history.candidate_frame"][chunk]):
            if candidate >= 0:
                got = score[0, np.flatnonzero(frame[0] == candidate)[0]]
                want = arrays["history.score"][chunk, i]
                np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_deep_forcing(methods, dit, parity_record):
    arrays = load_file(methods / "deep_forcing_14chunks.safetensors")
    policy = DeepForcing()
    contexts = run(dit, arrays, policy, parity_record)
    chosen = slice(policy.sink * PLACES, (policy.budget - policy.recent) * PLACES)
    for event, chunk in enumerate(arrays["select.chunk"]):
        memory = contexts[chunk].memory
        token = (PLACES * memory["time"] + memory["place"])[:, :, chosen]
        np.testing.assert_array_equal(
            np.sort(token[:, 0]), np.sort(arrays["select.chosen_token"][event])
        )
