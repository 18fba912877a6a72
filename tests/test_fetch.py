"""`tt-jax fetch` against a stand-in for the hub, and `tt-jax verify` of what it made."""

import subprocess
import sys

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


def command(hub, tmp_path, *args):
    return subprocess.run(
        [sys.executable, "-m", "tt_jax", *map(str, args)],
        env=environment(hub.url, tmp_path / "cache"), capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


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
    done = command(
        hub, tmp_path, "fetch", "rolling-forcing", tmp_path / "model", "--revision", "v1"
    )
    assert done.returncode == 0, done.stderr
    assert "academic-only" in done.stderr
    part = read_manifest(tmp_path / "model")["parts"]["dit"]
    assert part["files"][0]["revision"] == COMMITS["v1"] and part["generator"] == "generator"
    assert not any(WAN in path for _, path, _ in hub.requests)

    # random weights: everything is right but what the VAE makes of the test card
    done = command(hub, tmp_path, "verify", tmp_path / "model")
    assert done.returncode == 1, done.stderr
    wrong = [line for line in done.stdout.splitlines() if "WRONG" in line]
    assert len(wrong) == 1 and "round trip" in wrong[0]
    assert any("one chunk" in line and "finite" in line for line in done.stdout.splitlines())


def test_refusals(hub, tmp_path):
    target = tmp_path / "model"
    done = command(hub, tmp_path, "fetch", "wan2.1-1.3b", target, "--revision", "none")
    assert done.returncode == 2 and "no revision 'none'" in done.stderr
    hub.wrong.add("Wan2.1_VAE.pth")
    done = command(hub, tmp_path, "fetch", "wan2.1-1.3b", target)
    assert done.returncode == 2 and "isn't the file that Wan-AI" in done.stderr
    assert "Traceback" not in done.stderr and not target.exists()
    hub.wrong.clear()
    done = command(hub, tmp_path, "fetch", "wan2.1-1.3b", target)
    assert done.returncode == 0, done.stderr
    assert read_config(target)[1] == "bidirectional"
    done = command(hub, tmp_path, "fetch", "sora", target)
    assert done.returncode == 2 and "there is no 'sora'" in done.stderr
    hub.url = "http://127.0.0.1:1"
    done = command(hub, tmp_path, "fetch", "wan2.1-14b", tmp_path / "b")
    assert done.returncode == 1 and "Traceback" not in done.stderr
