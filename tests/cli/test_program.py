"""`tt-jax` as a process: what it imports, keeps and catches."""

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
from models import PROMPT
from processes import ENVIRONMENT, frames, listing

import tt_jax
from convert import known
from tt_jax import cache
from tt_jax.cli import main as cli
from tt_jax.cli import options
from tt_jax.models.configs import CONFIGS
from tt_jax.strategies.presets import NAMES
from tt_jax.trim.policies import POLICIES

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["generate", "--help"], ["generate"], ["eval", "--nothing"], []],
)
def test_help_and_errors_of_arguments_import_no_jax(arguments):
    code = """
import sys
from tt_jax.cli.main import main
try:
    main()
finally:
    heavy = {"jax", "flax", "numpy", "av", "PIL", "matplotlib"} & sys.modules.keys()
    print(*heavy, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == (0 if {"--help", "--version"} & {*arguments} else 2)
    assert done.stderr.splitlines()[-1] == ""


def test_version_and_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # nothing is broken at a hyphen
    for arguments, said in [
        (["--version"], [f"tt-jax {tt_jax.__version__}"]),
        (["--help"], ["generate", "compare", "eval", "fetch"]),
        (["generate", "--help"], ["else 30)", "(default: 0.1)", "tt-jax fetch", "top"]),
        (["compare", "--help"], ["(default: 0)", "deviations above the mean"]),
    ]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        out = " ".join(capsys.readouterr().out.split())
        assert end.value.code == 0 and all(words in out for words in said)
        assert "None" not in out and "False" not in out


def test_names_and_defaults_are_the_libraries():
    assert tuple(cache.NAMES) == options.CACHES
    assert tuple(POLICIES) == options.POLICIES
    assert sorted(options.PRESETS) == sorted(NAMES)
    assert sorted(options.MODELS) == sorted(CONFIGS)
    assert sorted(options.FETCHED) == sorted(known.KNOWN)
    trim = dataclasses.asdict(tt_jax.TokenTrim())
    switches = {"resample_noise": False, "prune_sink": False}
    assert options.TRIM | switches == trim


@pytest.mark.slow
def test_without_a_home(tiny_model, tmp_path):
    """No HOME, and a user whom the system doesn't know: nothing is kept, and all else works."""
    code = """
import os, sys
os.environ.pop("HOME", None)
os.environ.pop("XDG_CACHE_HOME", None)
import pwd
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
from tt_jax.cli.main import main
sys.exit(main())
"""
    command = [sys.executable, "-c", code, "generate", PROMPT, "--model", str(tiny_model)]
    done = subprocess.run(
        [*command, "--seconds", "0.5", "--out", "made"], env=ENVIRONMENT, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert frames(tmp_path / "made" / "video.mp4") == 8


def test_what_only_plans_keeps_no_programs(monkeypatch):
    """Those for a TPU can't be read back without one: each further plan would warn of it."""
    for name in ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    cli.own_process(argparse.Namespace(cleans_up=True, computes=False))
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert os.environ["JAX_PLATFORMS"] == "cpu" and "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_compiled_programs_are_kept(tmp_path, monkeypatch):
    name = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(name, raising=False)
    cli.keep_programs()
    assert os.environ.pop(name) == str(tmp_path / "tt-jax" / "programs")
    monkeypatch.setenv(name, "/else/where")
    cli.keep_programs()
    assert os.environ.pop(name) == "/else/where"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cli.keep_programs()
    assert name not in os.environ


# --- interrupts ----------------------------------------------------------------------------------


def interrupt(tiny_model, tmp_path, when, seconds, wrapper=("-m", "tt_jax"), number=signal.SIGINT):
    """Starts a process and sends it a signal once `when()`; it ends with 130, in so many words,
    which are returned."""
    command = [sys.executable, *wrapper, "generate", PROMPT, "--model", str(tiny_model),
               "--seconds", str(seconds), "--out", "made"]  # fmt: skip
    environment = ENVIRONMENT | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not when():
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    # On a busy machine, libraries may have complained of its slowness before.
    assert process.returncode == 130 and "Traceback" not in err
    assert err.endswith("tt-jax: interrupted.\n") and err.count("interrupted") == 1
    return err


@pytest.mark.slow
def test_an_interrupt_while_generating(tiny_model, tmp_path):
    compiled = tmp_path / "cache" / "tt-jax" / "programs"
    interrupt(tiny_model, tmp_path, lambda: any(compiled.glob("*rollout*")), seconds=9000)
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_what_was_finished_is_kept(tiny_model, tmp_path):
    """A spot machine is taken away: the video so far plays, and the run can go on."""
    saved = tmp_path / "made" / "video.run"
    err = interrupt(
        tiny_model, tmp_path, lambda: any(saved.glob("*/state-*")), 9000, number=signal.SIGTERM
    )
    assert "s that were finished are in made/video.partial.mp4.\n" in err
    assert "go on with: tt-jax generate --resume made/video.run\n" in err
    assert frames("made/video.partial.mp4") >= 160
    assert sorted(os.listdir("made")) == ["video.partial.mp4", "video.run"]


@pytest.mark.slow
def test_an_interrupt_while_writing(tiny_model, tmp_path):
    """Pictures take for ever here; the video is there already."""
    slow = """
import sys, time
from tt_jax.cli.main import main
from tt_jax.files import atomic
from tt_jax.plots import style
def save(figure, path):
    with atomic(path) as aside:
        aside.write_text("half")
        time.sleep(1000)
style.save = save
sys.exit(main())
"""
    half = tmp_path / "made"
    interrupt(tiny_model, tmp_path, lambda: any(half.glob(".*.png")), 0.5, wrapper=("-c", slow))
    assert listing("made") == ["video.json", "video.mp4"] and frames("made/video.mp4") == 8
