"""`tt-jax serve`: what it refuses before anything is loaded, and what it says when it is ready."""

import json
import socket

import pytest

from tt_jax.cli import main as cli
from tt_jax.cli import serving
from tt_jax.serve.engine import Engine


@pytest.fixture
def said(capsys, monkeypatch):
    """Runs the command without compiling or listening; its exit code, stdout and stderr."""
    monkeypatch.setattr(Engine, "warm", lambda self: None)
    monkeypatch.setattr(serving, "serve", lambda app, listening: None)

    def call(*arguments):
        code = cli.main(["serve", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def test_it_says_where_the_page_is(said, tiny_model):
    code, out, err = said("--model", tiny_model, "--port", 0)
    assert code == 0, err
    assert "open http://127.0.0.1:" in out and "token" not in out


def test_others_need_a_token(said, tiny_model):
    for given in ([], ["--token", "open-sesame"]):
        code, out, err = said("--model", tiny_model, "--port", 0, "--host", "0.0.0.0", *given)
        assert code == 0, err
        token = out.split("?token=")[1].split()[0]
        assert len(token) >= 20 or token == "open-sesame"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--token", "short"], "at least 8 letters"),
        (["--token", "with spaces in it"], "at least 8 letters"),
        (["--cache", "attic"], "no cache policy 'attic'"),
        (["--size", "30x32"], "multiples of 8"),
        (["--host", "256.0.0.1"], "can't be listened on"),
    ],
)
def test_refusals(said, tiny_model, options, words):
    code, out, err = said("--model", tiny_model, "--port", 0, *options)
    assert code == 2 and words in err and err.count("\n") == 1 and not out


def test_a_port_that_is_taken(said, tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = said("--model", tiny_model, "--port", taken.getsockname()[1])
    assert code == 2 and "can't be listened on" in err


def test_a_model_of_rolling_forcing(said, tiny_model, tmp_path):
    for entry in tiny_model.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    config = json.loads((tiny_model / "config.json").read_text())
    config["rollout"]["strategy"] = "rolling-forcing"
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, err = said("--model", tmp_path, "--port", 0, "--cache", "window")
    assert code == 2 and "several at once" in err
