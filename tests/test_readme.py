"""Whatever README.md and the pages beside it tell one to type works: their blocks as printed, long
ones at reduced length.

`make` is left to CI, which runs the targets; of `pip install` only the extras are looked up.
Commands in the text, between backquotes, are held against the program's own help.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from hub import WAN, environment, published, serve

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / ".docs" / "pages"
README = "\n".join(
    path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(PAGES.glob("*.md")))
)
PROGRAMS = ("tt-jax", "python", "python3", "pip", "make", "pytest")
SECONDS = "4"  # enough for the five blocks that Rolling Forcing needs
# Hours, or another test's work: these are only held against their help.
LONG = ("tt_jax.shapes", "tt-jax lab run", "tt-jax serve", "benchmarks", "pytest")

pytestmark = pytest.mark.slow


def blocks(*languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands() -> list[str]:
    """Every command of the blocks, without its comment."""
    lines = "".join(blocks("", "sh", "bash", "shell", "console")).replace("\\\n", " ").splitlines()
    lines = [line.removeprefix("$ ") for line in lines]
    return [line for line in lines if line.startswith(tuple(f"{name} " for name in PROGRAMS))]


def mentions() -> list[str]:
    """Commands of our programs in the text."""
    text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    quoted = (" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text))
    own = r"(tt-jax|python -m (convert|tt_jax|benchmarks)[\w.]*)( |$)"
    return sorted({command for command in quoted if re.match(own, command)})


def run(command: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    """Runs a command as a shell does, with this environment's Python and this checkout."""
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.defpath])
    env = os.environ | env | {
        "JAX_PLATFORMS": "cpu",
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),  # a later command finds compiled programs there
    }  # fmt: skip
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=1200
    )


def reduced(command: str) -> str:
    """A shorter video, by the embedded model."""
    command = re.sub(r"--model\s+\S+", "--model shapes", command)
    command, given = re.subn(r"--seconds\s+\S+", f"--seconds {SECONDS}", command)
    return command if given else f"{command} --seconds {SECONDS}"


def program_of(command: str) -> str:
    """The program, with its subcommands as far as they are words of ours."""
    words = shlex.split(command)
    count = 3 if words[0].startswith("python") or words[1:2] == ["lab"] else 2
    count += words[2:3] == ["benchmarks"]
    return " ".join(words[:count])


def check_against_help(command: str, folder: Path) -> None:
    """The program exists, and has the options that the command names."""
    program = program_of(command)
    told = help_of(program, folder)
    for option in re.findall(r"(?<=\s)--[a-z][\w-]*", command):
        assert option in told, f"{program} has no {option}"


@cache
def help_of(program: str, folder: Path) -> str:
    """What a program says of itself."""
    done = run(f"{program} --help", folder, {})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all commands: later ones find what earlier ones made."""
    folder = tmp_path_factory.mktemp("readme")
    program = folder / "bin" / "tt-jax"  # which exists where the package is installed
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nexec python -m tt_jax "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The environment of commands that need the hub."""
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("torch")
    content = published(tmp_path_factory.mktemp("published"))
    content["Wan-AI/Wan2.1-T2V-14B"] = content[WAN]
    with serve(content) as handler:
        yield environment(handler.url, tmp_path_factory.mktemp("hub"))


def test_there_is_something_to_run():
    assert any(command.startswith("tt-jax generate") for command in commands())
    assert len(blocks("python")) >= 1


@pytest.mark.parametrize("command", commands())
def test_a_command(command, folder, request):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif "pip" in words[:3]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.search(r"\[([\w,]+)\]", command)
        assert set(extras[1].split(",") if extras else []) <= set(known["optional-dependencies"])
    elif any(name in command for name in LONG):
        check_against_help(shlex.join(words), folder)
    elif words[:2] == ["tt-jax", "verify"]:
        # The stand-in's weights are random: only what the VAE makes of a picture is wrong.
        done = run(command, folder, request.getfixturevalue("hub"))
        wrong = [line for line in done.stdout.splitlines() if "WRONG" in line]
        assert done.stdout and all("round trip" in line for line in wrong), done.stderr
    else:
        env = request.getfixturevalue("hub") if words[:2] == ["tt-jax", "fetch"] else {}
        if words[:2] in (["tt-jax", "generate"], ["tt-jax", "compare"]):
            command = reduced(shlex.join(words))
        done = run(command, folder, env)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", mentions())
def test_a_command_in_the_text(command, folder):
    check_against_help(command, folder)


def test_the_python_blocks(folder):
    """One after the other, as a reader types them into one session."""
    code = "\n".join(blocks("python", "py"))
    code = re.sub(r"\bload\(\"[^\"]*\"", 'load("shapes"', code)
    code = re.sub(r"\bseconds=\d+", f"seconds={SECONDS}", code)
    (folder / "readme.py").write_text(code)
    done = run("python readme.py", folder, {})
    assert done.returncode == 0, done.stderr
