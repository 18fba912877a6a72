"""`tt-jax fetch` against a stand-in for the hub, and `tt-jax verify` of what it made."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from checkpoints import BY_NAME, SHALLOW, random_tensors, save, to_torch, tokenizer

from tt_jax.checkpoint import read_config, read_manifest

pytest.importorskip("huggingface_hub")
torch = pytest.importorskip("torch")

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
WAN = "Wan-AI/Wan2.1-T2V-1.3B"
DIT = dataclasses.replace(SHALLOW["dit"], dim=128, heads=1, layers=1)
# More than the 10 MB that huggingface_hub writes at once: what is written can be continued.
TEXT = dataclasses.replace(SHALLOW["text"], vocab=200_000)

pytestmark = pytest.mark.slow


class Hub(BaseHTTPRequestHandler):
    """The endpoints that huggingface_hub uses to list and to download; hashes can be made wrong."""

    repositories: dict  # name -> (licence, {file: content})
    wrong: set
    cut: set  # files whose first download breaks off near the end
    requests: list

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/"):
            repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self.describe(repository, revision)
        else:
            repository, _, rest = path[1:].partition("/resolve/")
            commit, _, file = rest.partition("/")
            self.send(self.repositories[repository][1][file], commit, file)

    def describe(self, repository, revision):
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        licence, files = self.repositories[repository]
        siblings = [
            {"rfilename": file, "size": len(content), "lfs": self.pointer(file, content)}
            for file, content in files.items()
        ]
        about = {"id": repository, "sha": commit, "siblings": siblings, "cardData": licence}
        body = json.dumps(about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def pointer(self, file, content):
        if file.endswith(".json"):
            return None
        digest = hashlib.sha256(b"other" if file in self.wrong else content).hexdigest()
        return {"sha256": digest, "size": len(content), "pointerSize": 134}

    def send(self, content, commit, file):
        start = 0
        if span := self.headers.get("Range"):
            start = int(span.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            if file in self.cut:
                self.cut.remove(file)
                self.wfile.write(content[:-1000])
                self.close_connection = True
                self.connection.shutdown(2)
            else:
                self.wfile.write(content[start:])


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The files of every repository."""
    folder = tmp_path_factory.mktemp("published")

    def pickled(tensors):
        torch.save(tensors, folder / "x.pt")
        return (folder / "x.pt").read_bytes()

    layouts = {part: BY_NAME[part, "native"] for part in SHALLOW}
    dit = random_tensors(layouts["dit"], DIT)
    generator = to_torch({f"model.{name}": x for name, x in dit.items()})
    wan = {
        "config.json": json.dumps({"num_heads": 1}).encode(),
        "README.md": b"a model card",
        "diffusion_pytorch_model.safetensors": save(folder / "x.safetensors", dit).read_bytes(),
        "Wan2.1_VAE.pth": pickled(to_torch(random_tensors(layouts["vae"], SHALLOW["vae"]))),
        "models_t5_umt5-xxl-enc-bf16.pth": pickled(to_torch(random_tensors(layouts["text"], TEXT))),
        "google/umt5-xxl/spiece.model": tokenizer(),
    }
    return {
        WAN: ({"license": "apache-2.0"}, wan),
        "gdhe17/Self-Forcing": (
            {"license": "cc-by-nc-sa-4.0"},
            {"checkpoints/self_forcing_dmd.pt": pickled({"generator_ema": generator})},
        ),
        "TencentARC/RollingForcing": (
            {"license": "other", "license_name": "academic-only"},
            {"checkpoints/any_name.pt": pickled({"generator": generator})},
        ),
    }


@pytest.fixture
def hub(content):
    handler = type(
        "Handler", (Hub,), {"repositories": content, "wrong": set(), "cut": set(), "requests": []}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def command(hub, tmp_path, *args):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.run(
        [sys.executable, "-m", "tt_jax", *map(str, args)],
        env=environment, capture_output=True, text=True, timeout=1200,
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
