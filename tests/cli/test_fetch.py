"""`tt-jax fetch` against a stand-in for the hub, and `tt-jax verify` of what it made."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hub import COMMITS, DIT, WAN, environment, published, serve

from tt_jax.checkpoint import read_config, read_manifest

pytest.importorskip("huggingface_hub")
pytest.importorskip("torch")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def hub(content):
    with serve(content) as handler:
        yield handler


PROGRAM = """
import contextlib, io, json, sys
from tt_jax.cli.main import main
for args in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    print(json.dumps({"returncode": code, "stdout": out.getvalue(), "stderr": err.getvalue()}))
"""


def commands(hub, tmp_path, *several, **variables):
    """Of one process, whose imports take longer than they do; what each ended with and said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([[*map(str, args)] for args in several])],
        env=environment(hub.url, tmp_path / "cache") | variables, capture_output=True, text=True,
        timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [SimpleNamespace(**json.loads(line)) for line in done.stdout.splitlines()]


def command(hub, tmp_path, *args):
    """A process of its own, as it is called."""
    return subprocess.run(
        [sys.executable, "-m", "tt_jax", *map(str, args)],
        env=environment(hub.url, tmp_path / "cache"), capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


@pytest.mark.slow
def test_generator_with_the_parts_it_lacks(hub, tmp_path):
    hub.cut.add("models_t5_umt5-xxl-enc-bf16.pth")
    done = command(hub, tmp_path, "fetch", "self-forcing", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    config, kind = read_config(tmp_path / "model")
    assert config.dit == DIT and kind == "causal generator"
    manifest = read_manifest(tmp_path / "model")
    file = manifest["parts"]["dit"]["files"][0]
    assert file["repository"] == "gdhe17/Self-Forcing" and file["revision"] == COMMITS["main"]
    assert manifest["parts"]["vae"]["files"][0]["repository"] == WAN
    # licences before the first download; no base transformer; the broken download went on
    lines = done.stderr.splitlines()
    first = next(i for i, line in enumerate(lines) if "downloading" in line)
    assert "cc-by-nc-sa-4.0" in lines[0] and "apache-2.0" in lines[1] and first == 2
    got = {(path.rsplit("/", 1)[1], span) for verb, path, span in hub.requests if verb == "GET"}
    assert not any(name.startswith("diffusion_pytorch") for name, _ in got)
    assert any(name.startswith("models_t5") and span for name, span in got)

    # another generator over it, at a tag: the other parts aren't downloaded again
    hub.requests.clear()
    done, verified = commands(
        hub, tmp_path, ("fetch", "rolling-forcing", tmp_path / "model", "--revision", "v1"),
        ("verify", tmp_path / "model"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "academic-only" in done.stderr
    part = read_manifest(tmp_path / "model")["parts"]["dit"]
    assert part["files"][0]["revision"] == COMMITS["v1"] and part["generator"] == "generator_ema"
    assert not any(WAN in path for _, path, _ in hub.requests)

    # random weights: everything is right but what the VAE makes of the test card
    assert verified.returncode == 1, verified.stderr
    wrong = [line for line in verified.stdout.splitlines() if "WRONG" in line]
    assert len(wrong) == 1 and "round trip" in wrong[0]
    assert any("one chunk" in line and "finite" in line for line in verified.stdout.splitlines())


@pytest.mark.slow
def test_refusals(hub, tmp_path):
    target = tmp_path / "model"
    fetch = "fetch", "wan2.1-1.3b", target
    hub.wrong.add("Wan2.1_VAE.pth")
    none, done, other = commands(
        hub, tmp_path, (*fetch, "--revision", "none"), fetch, ("fetch", "sora", target)
    )
    assert none.returncode == 2 and "no revision 'none'" in none.stderr
    assert other.returncode == 2 and "there is no 'sora'" in other.stderr
    assert done.returncode == 2 and "isn't the file that Wan-AI" in done.stderr
    assert "Traceback" not in done.stderr and not target.exists()
    hub.wrong.clear()
    done = command(hub, tmp_path, *fetch)
    assert done.returncode == 0, done.stderr
    assert read_config(target)[1] == "bidirectional"


def one_line(done, code):
    """The message of a command that failed as it should; what came before it were reports."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_without_the_hub(hub, tmp_path):
    """What was fetched once can be made again when the hub is switched off, dead, or shadowed."""
    base, tag = ("fetch", "self-forcing"), ("fetch", "rolling-forcing", "--revision", "v1")
    lacks = "fetch", "wan2.1-14b", tmp_path / "x"
    before = commands(hub, tmp_path, (*base, tmp_path / "a"), (*tag, tmp_path / "b"))
    assert [done.returncode for done in before] == [0, 0]
    hub.requests.clear()
    done, tagged, other = commands(
        hub, tmp_path, (*base, tmp_path / "c"), (*tag, tmp_path / "d"),
        ("fetch", "wan2.1-1.3b", tmp_path / "x"), HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.returncode == 0 and not hub.requests, done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stderr and str(tmp_path / "cache") in done.stderr
    a, c = (read_manifest(tmp_path / x) for x in "ac")
    assert a["parts"] == c["parts"] and a["tokenizer"] == c["tokenizer"] and a["kind"] == c["kind"]
    assert tagged.returncode == 0, tagged.stderr
    # not everything is there: the base transformer wasn't needed
    line = one_line(other, 1)
    assert "doesn't have all of Wan-AI/Wan2.1-T2V-1.3B at main" in line and hub.url in line
    assert not (tmp_path / "x").exists()

    hub.portal = "<html><title>Hotel Wi-Fi</title>Log in</html>"
    done, other = commands(hub, tmp_path, (*base, tmp_path / "f"), lacks)
    assert done.returncode == 0 and "answered with a web page ('Hotel Wi-Fi')" in done.stderr
    line = one_line(other, 1)
    host = hub.url.removeprefix("http://")
    assert f"{host} answered with a web page ('Hotel Wi-Fi'), status 200" in line
    hub.portal = "Squid: access denied"
    line = one_line(command(hub, tmp_path, *lacks), 1)
    assert f"{host} answered 'Squid: access denied', status 200, not as the hub does" in line

    hub.url = "http://127.0.0.1:1"
    done, other = commands(hub, tmp_path, (*base, tmp_path / "g"), lacks)
    assert done.returncode == 0 and "127.0.0.1:1 can't be reached" in done.stderr
    line = one_line(other, 1)
    assert "127.0.0.1:1 can't be reached: Connection refused" in line


def test_said_before_the_download(hub, tmp_path):
    (tmp_path / "taken").write_text("mine")
    done = command(hub, tmp_path, "fetch", "self-forcing", tmp_path / "taken")
    assert one_line(done, 2) == (
        f"  {tmp_path}/taken is a file: give the name of a folder for the model."
    )
    # an environment without torch
    program = (
        "import sys; sys.modules['torch'] = None; from tt_jax.cli.main import main; sys.exit(main("
    )
    args = ["fetch", "self-forcing", str(tmp_path / "model")]
    done = subprocess.run(
        [sys.executable, "-c", f"{program}{args}))"],
        env=environment(hub.url, tmp_path / "cache"), capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert "needs torch: pip install 'tt-jax[convert]'" in one_line(done, 2)
    assert not hub.requests and (tmp_path / "taken").read_text() == "mine"
