"""Algorithm 1 around a made-up model, small enough to work out by hand.

Four tokens of one value, three cached frames, of which the first is a sink. What the model makes
is written down: it looks up how many positions of the last frame were dropped, attempt by attempt.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tt_jax.cache import buffer
from tt_jax.strategies.judge import judge
from tt_jax.strategies.state import State
from tt_jax.trim.drift import Statistics
from tt_jax.trim.tokentrim import TokenTrim

# Of three samples, attempt by attempt: the summary before is 0, so these are drifts. Two severities
# of 2 and 4 were seen, so that with lambda 2 the threshold is 3 + 2 x 1.
MADE = np.array(
    [
        [[10, 1, 1, 1], [1, 8, 1, 1], [1, 1, 6, 1], [1, 1, 1, 5], [0, 0, 0, 0]],  # 5 isn't above 5
        [[9, 1, 1, 1], [1, 2, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[3, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    np.float32,
)
NOISE = jnp.zeros((1, 3, 1, 2, 2, 1))


def by_entries(drift, entry_drift, key):
    """What "top" does, from the cached frames' distances to the attempt: they are all 0."""
    return entry_drift >= entry_drift.max(axis=-1, keepdims=True)


def before(**changed):
    """The state before the chunk: all cached entries valid, two severities seen."""
    context = dataclasses.replace(
        buffer.empty(
            layers=1, batch=3, slots=3, tokens=4, heads=1, head_dim=1, token_dim=1, sink=1,
            dtype=jnp.float32,
        ),
        frame=jnp.arange(3, dtype=jnp.int32),
        valid=jnp.ones((3, 3, 4), bool),
    )  # fmt: skip
    seen = Statistics.start(3)
    for severity in (2.0, 4.0):
        seen = seen.update(jnp.full(3, severity), jnp.array(True))
    state = State(
        context=context, summary=jnp.zeros((3, 4, 1)), seen=jnp.array(True), statistics=seen,
        frame=jnp.int32(3), chunk=jnp.int32(1), key=jax.random.key(0),
    )  # fmt: skip
    return dataclasses.replace(state, **changed)


def run(state=None, made=MADE, seen=None, **settings):
    trim = TokenTrim(**{"p": 0.25, "lam": 2.0, "retries": 4, **settings})

    def denoise(valid, noise):
        lost = jnp.sum(~valid[:, 2], axis=-1)
        x0 = jnp.asarray(made)[jnp.arange(3), lost].reshape(3, 1, 2, 2, 1)
        # The frame behind the chunk, which isn't judged.
        return jnp.concatenate([x0 + noise[0], jnp.full_like(x0, 99)], axis=1)

    def redraw(retry):
        return jnp.full_like(NOISE, retry / 8)

    state = before() if state is None else state
    return jax.jit(lambda state: judge(trim, state, denoise, NOISE, redraw, 1, 1))(state)


@pytest.mark.parametrize("select", ["top", by_entries])
def test_attempts(select):
    kept, record, state = run(select=select)
    assert record.severity.tolist() == [10, 9, 3]
    assert record.threshold.tolist() == [5, 5, 5]
    assert record.tested.all() and record.measured.all()
    assert record.triggered.tolist() == [True, True, False]
    # Each goes on as long as the attempt before was abnormal, and no longer.
    assert record.accepted_severity.tolist() == [5, 2, 3]
    assert record.drift.tolist() == MADE[:, 0].tolist()
    assert record.pruned.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    lost = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], bool)
    want = np.stack([np.ones((3, 4), bool), lost, lost], axis=1)
    np.testing.assert_array_equal(kept.valid, want)
    np.testing.assert_array_equal(state.context.valid, want)
    np.testing.assert_allclose(record.kept_fraction, [6 / 12, 10 / 12, 1])
    # What was kept is what is shown, remembered and learnt from.
    made = MADE[[0, 1, 2], [3, 1, 0]]
    np.testing.assert_array_equal(kept.x0[:, 0].reshape(3, 4), made)
    np.testing.assert_array_equal(state.summary[..., 0], made)
    assert state.statistics.count.tolist() == [3, 3, 3] and state.seen
    np.testing.assert_allclose(state.statistics.mean, [11 / 3, 8 / 3, 3], rtol=1e-6)


def test_retries_are_counted():
    kept, record, _ = run(retries=2)
    assert record.accepted_severity.tolist() == [6, 2, 3]
    assert record.pruned.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    kept, record, _ = run(retries=0)
    assert record.triggered.tolist() == [True, True, False] and kept.valid.all()
    assert record.accepted_severity.tolist() == [10, 9, 3]


def test_better_keeps_the_least_drifting():
    made = MADE.copy()
    made[0, 2], made[0, 3] = [1, 1, 9, 1], [1, 1, 1, 9]  # after 10 and 8
    made[1, 1] = [9, 1, 1, 1]  # no better than the first
    kept, record, state = run(made=made, accept="better", retries=3)
    assert record.accepted_severity.tolist() == [8, 9, 3]
    assert record.triggered.tolist() == [True, True, False]
    assert record.pruned.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(record.kept_fraction, [10 / 12, 1, 1])
    np.testing.assert_array_equal(state.context.valid, kept.valid)
    np.testing.assert_array_equal(state.summary[..., 0], made[[0, 1, 2], [1, 0, 0]])
    np.testing.assert_allclose(state.statistics.mean, [14 / 3, 15 / 3, 3], rtol=1e-6)


@pytest.mark.parametrize(("accept", "second"), [("better", 1), ("consistent", 0)])
def test_consistent_does_not_lose_what_the_context_had(accept, second):
    """Both second attempts drift less; the first sample's keeps the cached 5, the second's not."""
    tokens = jnp.ones((3, 3, 4, 1)).at[:, :, 1].set(5)
    made = np.ones((3, 5, 4), np.float32)
    made[:2, 0], made[0, 1] = [8, 5, 1, 1], [1, 5, 1, 1]
    context = dataclasses.replace(before().context, tokens=tokens)
    kept, record, state = run(before(context=context), made, accept=accept, retries=1)
    assert record.triggered.tolist() == [True, True, False]
    np.testing.assert_array_equal(state.summary[..., 0], made[[0, 1, 2], [1, second, 0]])
    assert kept.dropped[:, 2, 0].tolist() == [True, bool(second), False]


def test_robust_statistics_forget_one_that_was_huge():
    state = before()
    for severity in (4.0, 99.0, 4.0):
        more = state.statistics.update(jnp.full(3, severity), jnp.array(True))
        state = dataclasses.replace(state, statistics=more)
    # 2, 4, 99, 4, 4: median 4 and no deviation from it for most; mean 22.6, deviation 38.2.
    assert run(state, statistics="robust")[1].threshold.tolist() == [4, 4, 4]
    np.testing.assert_allclose(run(state)[1].threshold, 22.6 + 2 * 38.2, rtol=1e-3)


def test_sinks_and_what_was_dropped_before():
    """`pruned` counts all that an intervention drops, whatever had gone already."""
    valid = jnp.ones((3, 3, 4), bool).at[:, 1, 0].set(False)
    state = before(context=dataclasses.replace(before().context, valid=valid))
    kept, record, _ = run(state, retries=1)
    assert record.pruned.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(record.kept_fraction, [10 / 12, 10 / 12, 11 / 12])
    assert kept.valid[:, 0].all()
    kept, record, _ = run(retries=1, prune_sink=True)
    assert kept.valid[:, :, 0].tolist() == [[False] * 3, [False] * 3, [True] * 3]
    np.testing.assert_allclose(record.kept_fraction, [9 / 12, 9 / 12, 1])
    # Two of the three frames, of which the sink isn't counted.
    half = lambda drift, entry_drift, key: jnp.zeros((3, 3, 4), bool).at[:, :2, 0].set(True)  # noqa: E731
    _, record, _ = run(retries=1, select=half)
    assert record.pruned.tolist() == [[0.5, 0, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]]
    # A frame that isn't there yet can't lose anything, nor counts.
    there = dataclasses.replace(before().context, frame=jnp.array([0, -1, 2], jnp.int32))
    kept, record, _ = run(before(context=there), retries=1)
    assert kept.valid[:, 1].all() and record.pruned[0].tolist() == [1, 0, 0, 0]


def test_fresh_noise():
    """1/8 more for each retry, in all tokens."""
    kept, record, _ = run(resample_noise=True, retries=2)
    assert record.severity.tolist() == [10, 9, 3]
    np.testing.assert_allclose(record.accepted_severity, [6.25, 2.125, 3])
    np.testing.assert_allclose(kept.x0[0, 0].reshape(4), [1.25, 1.25, 6.25, 1.25])


def test_nothing_to_compare_with():
    _, record, state = run(before(seen=jnp.array(False)))
    for name in ("drift", "severity", "accepted_severity", "threshold", "triggered", "pruned"):
        assert not getattr(record, name).any(), name
    assert not record.measured.any() and not record.tested.any()
    assert state.seen and state.statistics.count.tolist() == [2, 2, 2]
    np.testing.assert_array_equal(state.summary[..., 0], MADE[:, 0])


def test_no_test_yet():
    _, record, state = run(warmup=3)
    assert record.measured.all() and record.severity.tolist() == [10, 9, 3]
    assert not record.tested.any() and not record.threshold.any() and not record.triggered.any()
    assert record.accepted_severity.tolist() == [10, 9, 3] and not record.pruned.any()
    assert state.statistics.count.tolist() == [3, 3, 3]


@pytest.mark.parametrize(("chunk", "measured"), [(0, False), (1, True)])
def test_predictions_are_compared_with_predictions(chunk, measured):
    """Given frames, before the first chunk, are finished."""
    _, record, state = run(before(chunk=jnp.int32(chunk)), when="first_step")
    assert record.measured.tolist() == record.tested.tolist() == [measured] * 3
    assert state.statistics.count.tolist() == [2 + measured] * 3
    assert run(before(chunk=jnp.int32(0)))[1].measured.all()


def test_novelty_knows_what_is_valid():
    """A cached 10 makes the first sample's 10 familiar, unless it was dropped."""
    tokens = jnp.zeros((3, 3, 4, 1)).at[:, 1, 2].set(10)
    for valid, want in ((True, 0), (False, 9)):  # the nearest of the others is then 1 away from 9
        mask = jnp.ones((3, 3, 4), bool).at[:, 1, 2].set(valid)
        there = tokens.at[:, 2, 3].set(1)
        context = dataclasses.replace(before().context, tokens=there, valid=mask)
        _, record, _ = run(before(context=context), select="novelty", retries=0)
        assert record.drift[0].tolist() == [want, 0, 0, 0]


def test_threshold_is_exceeded():
    """What equals it is normal."""
    made = MADE.copy()
    made[0, 0] = [5, 1, 1, 1]
    assert run(made=made)[1].triggered.tolist() == [False, True, False]


def test_novelty_of_every_attempt_is_against_the_same():
    """Else an attempt would seem newer the more was dropped before it."""
    made = np.array([[[10, 1, 1, 1]] * 5] * 3, np.float32)
    tokens = jnp.ones((3, 3, 4, 1)).at[:, 2, 0].set(4)  # which the first attempt has dropped
    context = dataclasses.replace(before().context, tokens=tokens)
    _, record, _ = run(before(context=context), made, select="novelty", retries=1)
    assert record.triggered.all() and record.pruned.tolist() == [[1, 0, 0, 0]] * 3
    assert record.severity.tolist() == record.accepted_severity.tolist() == [6, 6, 6]


def test_every_retry_has_a_key_of_its_own():
    """Of a policy that draws, draws of one of four positions."""
    made = np.array([[[10, 1, 1, 1]] * 5] * 3, np.float32)
    _, record, _ = run(made=made, select="random", retries=3)
    assert (record.pruned.sum(axis=1) > 1).any()
