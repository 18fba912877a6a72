"""What is said while a command runs."""

import io
import time

import numpy as np
from rich.console import Console

import tt_jax
from tt_jax.cli import progress


def partly(kind, **fields):
    """One of a frozen class of which only some fields are looked at."""
    one = object.__new__(kind)
    vars(one).update(fields)
    return one


def steps(chunks, pause=0.0):
    """A run's chunks as `Tally` counts them: 9 frames, then 12 each, abnormal from the third on."""
    for i in range(chunks):
        time.sleep(pause)
        severity = np.array([[0.5 if i else np.nan]])
        rollout = partly(tt_jax.Rollout, triggered=np.array([[i > 1]]), severity=severity)
        frames = np.zeros((1, 12 if i else 9, 2, 2, 3), np.uint8)
        yield partly(tt_jax.Chunk, total=chunks, frames=frames, rollout=rollout)


def test_what_is_said_of_a_run(monkeypatch):
    clock = iter([0.0, 0.0, 20.0, 22.0, 24.0, 24.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    tally, chunks = progress.Tally("TokenTrim", 480, 16, acts=True), steps(41)
    assert str(tally) == "compiling, 0:00"
    tally.add(next(chunks))
    assert str(tally) == "chunk 1 of 41, 0.6 of 30.0 s, 0 interventions"
    tally.add(next(chunks))
    tally.add(next(chunks))
    assert str(tally) == (
        "chunk 3 of 41, 2.1 of 30.0 s, 6.0 frames/s, 1:16 left, severity 0.500, 1 intervention"
    )
    tally.acts, tally.abnormal = False, 2
    assert str(tally).endswith("2 abnormal chunks")


def test_lines_without_a_terminal(monkeypatch, capsys):
    """Even while nothing comes of the run, as while it is compiled."""
    monkeypatch.setattr(progress, "EVERY", 0.05)
    tally = progress.Tally("plain", 21, 16, acts=False)
    assert len(list(progress.watch(steps(2, pause=0.4), tally))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tt-jax: plain: compiling, 0:00"
    assert lines[-1].startswith("tt-jax: plain: chunk 1 of 2, 0.6 of 1.3 s")


def test_the_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=150, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    for _ in progress.watch(steps(2, pause=0.3), progress.Tally("plain", 21, 16, acts=False)):
        pass
    said = screen.getvalue()
    assert "plain" in said and "compiling" in said and "0/?" not in said
    assert "chunk 1 of 2, 0.6 of 1.3 s" in said and "chunk 2 of 2, 1.3 of 1.3 s" in said
