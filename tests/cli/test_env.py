"""`tt-jax env`: what it tells of a machine, and that nothing of a machine stops it."""

import importlib.metadata
import sys
from pathlib import Path

import jax
import pytest

from tt_jax.cli import main as cli


@pytest.fixture
def report(capsys, monkeypatch):
    """Runs the command and returns its sections as {title: {name: value}}."""
    monkeypatch.setattr(cli, "keep_programs", lambda: None)

    def call(*folders):
        assert cli.main(["env", *map(str, folders)]) == 0
        sections = {}
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("  "):
                name, value = line.strip().split("  ", 1)
                sections[title][name] = value.strip()
            else:
                title = line
                sections[title] = {}
        return sections

    return call


def test_what_it_tells(report, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_TEST_SETTING", "7")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    kept = tmp_path / "tt-jax" / "programs" / "one"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(2_500_000))
    sections = report(tiny_model, tmp_path)
    assert sections["versions"]["jax"] == jax.__version__
    assert sections["versions"]["orbax-checkpoint"] == importlib.metadata.version(
        "orbax-checkpoint"
    )
    assert len(sections["devices"]) == 1 + jax.device_count()
    assert "GB free" in sections["memory"]["main memory"]
    assert sections["caches"]["programs"].endswith("programs: 1 files, 2.5 MB")
    assert sections["caches"]["prompts"].endswith("prompts: empty")
    assert sections["models"]["shapes"].startswith("causal generator; dit ")
    _, given, empty = sections["models"].values()
    assert ", vae " in given and "MB" in given and "holds no model" in empty
    assert sections["settings"]["JAX_TEST_SETTING"] == "7"
    assert "secret" not in str(sections)


def test_without_a_home(report, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert "no home folder" in report()["caches"]["none"]


def test_the_home_folder_is_not_told(report, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(sys.executable).parent))
    assert report()["versions"]["python"].endswith("(~/python)")


def test_a_back_end_that_does_not_start(report, monkeypatch):
    def broken():
        raise RuntimeError("Unable to initialize backend 'cuda':\n  driver too old")

    monkeypatch.setattr(jax, "devices", broken)
    assert report()["devices"]["none"] == "Unable to initialize backend 'cuda': driver too old"
