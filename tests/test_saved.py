"""States in files, and runs that are killed."""

import dataclasses
import errno
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kill_generate import kills, made
from models import PROMPT

import tt_jax
from tt_jax.cli import generate, resume
from tt_jax.cli import main as cli
from tt_jax.cli.output import Output
from tt_jax.models.vae import Cache
from tt_jax.trim.policies import POLICIES

EAGER = tt_jax.TokenTrim(p=0.2, lam=-100.0)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and type(a) is type(b)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_whatever_a_state_holds_comes_back(tmp_path):
    arrays = {
        "bfloat16": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
        "key": jax.random.key(3, impl="rbg"),
        "host": (np.zeros((0, 2), np.uint8), [np.full((), 2, np.float64)]),
    }
    others = {
        "settings": tt_jax.SelfForcing(window=9, guidance=tt_jax.FlowMo()),
        5: [None, float("inf"), True, "text"],
    }
    tt_jax.save_state(tmp_path / "state", {"arrays": arrays, "others": others})
    again = tt_jax.load_state(tmp_path / "state")
    same(arrays, again["arrays"])
    assert again["others"] == others
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "state"
    tt_jax.save_state(path, {"a": np.arange(100)})
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[50] ^= 1
    path.write_bytes({"cut": data[:-9], "flipped": data, "other": b"no state"}[damage])
    with pytest.raises(ValueError, match=r"state is no state, or is damaged"):
        tt_jax.load_state(path)


def test_what_has_no_name_is_refused(tmp_path):
    trim = tt_jax.TokenTrim(select=lambda *_: POLICIES)
    with pytest.raises(ValueError, match="can't be kept in a file"):
        tt_jax.save_state(tmp_path / "state", trim)
    assert not list(tmp_path.iterdir())


def test_classes_of_elsewhere_are_not_imported(tmp_path):
    kind = dataclasses.make_dataclass("Elsewhere", ["a"])
    kind.__module__ = "nowhere"
    tt_jax.save_state(tmp_path / "state", kind(1))
    with pytest.raises(ValueError, match="needs Elsewhere of nowhere: import that first"):
        tt_jax.load_state(tmp_path / "state")


def test_a_stream_goes_on_from_a_file(tiny_model, tmp_path):
    """Written while it is made, too; and another strategy is refused."""
    pipe = tt_jax.load(tiny_model)
    request = {"seconds": 2.8, "seed": 3, "trim": EAGER}
    script = [(0, PROMPT), (0.6, "a large blue square")]
    chunks = []
    for chunk in pipe.stream(script, **request):
        if chunk.number == 1:
            tt_jax.save_state(tmp_path / "state", chunk.state)
        chunks.append(chunk)
    state: tt_jax.VideoState = tt_jax.load_state(tmp_path / "state")
    same(chunks[1].state.rollout, state.rollout)
    cache: Cache = state.cache
    same(chunks[1].state.cache, cache)
    rest = list(pipe.stream(script, **request, resume=state))
    assert [chunk.number for chunk in rest] == [2, 3]
    for one, other in zip(rest, chunks[2:], strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.rollout.severity, other.rollout.severity)
    with pytest.raises(ValueError, match=r"the state was made with cache Window.*sink=0"):
        pipe.stream(script, **request, resume=state, strategy=pipe.strategy(sink=1))
    with pytest.raises(ValueError, match="this one's last chunks"):
        pipe.stream(script, **request, resume=chunks[3].state)
    with pytest.raises(ValueError, match="give either"):
        pipe.stream(script, **request, resume=state, state=state)
    written = pipe.generate(script, **request, out=tmp_path / "video.mp4")
    assert written.length == 45 and written.files == (tmp_path / "video.mp4",)
    assert written.changes.keys() == {1} and (written.numbers["dropped"][0, 3] > 0)


@pytest.mark.slow
def test_a_full_disk_keeps_the_state_before(tiny_model, tmp_path, monkeypatch, capsys):
    """One sentence, and the run goes on from there when there is room again."""
    monkeypatch.chdir(tmp_path)
    command = ["generate", PROMPT, "--model", str(tiny_model), "--seconds", "2.8", "--p", "0.2"]
    command += ["--lam", "-100", "--save-every", "1", "--out"]
    assert cli.main([*command, "whole"]) == 0
    real, calls = os.fsync, []

    def full(descriptor):  # at the second state; before each of them a segment is flushed
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert cli.main([*command, "made"]) == 1
    out, err = capsys.readouterr()
    *_, finished, goes_on, last = err.splitlines()
    run = Path("made", "video.run")
    states = list(run.glob("*/*state-*"))
    assert [path.name for path in states] == ["state-000001"]
    assert finished == "tt-jax: the 2.1 s that were finished are in made/video.partial.mp4."
    assert goes_on == f"tt-jax: go on with: tt-jax generate --resume {run}"
    assert last.startswith("tt-jax: [Errno 28] No space left on device: ")
    assert last.endswith("state-000002'") and not out and "Traceback" not in err

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", read_only)
        assert cli.main(["generate", "--resume", str(run)]) == 2
    assert capsys.readouterr().err == f"tt-jax: {run} can't be written: Read-only file system.\n"
    assert list(run.glob("*/*state-*")) == states

    assert cli.main(["generate", "--resume", str(run)]) == 0
    assert made(tmp_path / "made") == made(tmp_path / "whole")


def read_only(**_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_run_that_is_killed_while_it_clears_up_can_go_on(tmp_path, monkeypatch):
    output = Output(tmp_path / "video.mp4", False, 1)
    take = output.unfinished / "TokenTrim"
    take.mkdir(parents=True)
    (take / "state-000001").touch()
    (take / "segment-000000-0.mp4").touch()
    resume.save(output.unfinished, {"command": "tt-jax generate x"})
    real, left = os.unlink, []

    def watched(path, **settings):  # what is there after each file that goes
        real(path, **settings)
        left.append(sorted(p.name for p in output.unfinished.rglob("*") if p.is_file()))

    monkeypatch.setattr(os, "unlink", watched)
    output.clear()
    assert left == [["request.json", "segment-000000-0.mp4"], ["request.json"], []]
    assert not tmp_path.exists()


def test_a_run_goes_on_where_it_is_told(tmp_path):
    """Devices may be others, everything else is the first command's."""
    begun = "tt-jax generate x --seconds 3 --mesh 2 --coordinator a:1 --processes 2 --process 0"
    resume.save(tmp_path, {"command": begun})

    def places(more):
        command = f"tt-jax generate --resume {tmp_path} {more}"
        args = resume.restored(command, tmp_path, generate.arguments)
        assert (args.seconds, args.prompt, args.command) == (3.0, "x", begun)
        return args.mesh, args.coordinator, args.processes, args.process

    assert places("") == (2, "a:1", 2, 0)
    assert places("--mesh 1") == (1, None, None, None)
    again = "--mesh tensor=2 --coordinator b:1 --processes 2 --process 1"
    assert places(again) == ({"tensor": 2}, "b:1", 2, 1)
    with pytest.raises(ValueError, match=r"begun with --seconds 3.0 and can't go on with 4.0"):
        places("--seconds 4")


@pytest.mark.slow
def test_killed_runs_go_on(tmp_path):
    assert len(list(kills(2, tmp_path))) == 2  # Self Forcing and Rolling Forcing
