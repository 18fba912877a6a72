"""A stand-in for the hub on this machine, with small random checkpoints of the known models."""

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from checkpoints import (
    BY_NAME,
    NARROW,
    SHALLOW,
    diffusers_folder,
    random_tensors,
    save,
    to_torch,
    tokenizer,
)

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
WAN = "Wan-AI/Wan2.1-T2V-1.3B"
DIT = dataclasses.replace(SHALLOW["dit"], dim=128, heads=1, layers=1)
# More than the 10 MB that huggingface_hub writes at once: what is written can be continued.
TEXT = dataclasses.replace(SHALLOW["text"], vocab=200_000)


class Hub(BaseHTTPRequestHandler):
    """The endpoints that huggingface_hub uses to list and to download; hashes can be made wrong."""

    repositories: dict  # name -> (licence, {file: content})
    wrong: set
    cut: set  # files whose first download breaks off near the end
    portal: str  # if not empty, the page that is the answer to everything
    requests: list

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.requests.append((self.command, path, self.headers.get("Range")))
        if self.portal:
            self.answer(200, "text/html", self.portal.encode())
        elif path.startswith("/api/models/"):
            repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self.describe(repository, revision)
        else:
            repository, _, rest = path[1:].partition("/resolve/")
            commit, _, file = rest.partition("/")
            self.send(self.repositories[repository][1][file], COMMITS.get(commit, commit), file)

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
        self.answer(200, "application/json", json.dumps(about).encode())

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
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


def published(folder: Path) -> dict:
    """The files of every repository; needs torch. `folder` is for files on the way."""
    import torch

    def pickled(tensors):
        torch.save(tensors, folder / "x.pt")
        return (folder / "x.pt").read_bytes()

    layouts = {part: BY_NAME[part, "native"] for part in SHALLOW}
    dit = random_tensors(layouts["dit"], DIT)
    generator = to_torch({f"model.{name}": x for name, x in dit.items()})
    wan = {
        "config.json": json.dumps({"_class_name": "WanModel", "num_heads": 1}).encode(),
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
            {"checkpoints/rolling_forcing_dmd.pt": pickled({"generator_ema": generator})},
        ),
    }


def every_model(folder: Path) -> dict:
    """The files of every row of the table of known models, in the names that its authors use."""
    import torch

    small = {**SHALLOW, "dit": DIT}
    native, diffusers = (BY_NAME["dit", name] for name in ("native", "diffusers"))

    def pickled(**tensors) -> bytes:
        torch.save(tensors, folder / "x.pt")
        return (folder / "x.pt").read_bytes()

    def dit(seed: int, before="model.", layout=native):
        tensors = random_tensors(layout, DIT, seed=seed)
        return to_torch({f"{before}{name}": x for name, x in tensors.items()})

    def part(name: str, layout="native", seed=0) -> dict:
        return random_tensors(BY_NAME[name, layout], small[name], seed=seed)

    def lora() -> dict:
        rng = np.random.default_rng(0)
        name = "base_model.model.blocks.0.self_attn.q.lora_{}.weight"
        return to_torch({name.format(x): rng.normal(size=s).astype("f4")
                         for x, s in (("A", (4, DIT.dim)), ("B", (DIT.dim, 4)))})  # fmt: skip

    def plain(tensors) -> bytes:
        return save(folder / "x.safetensors", tensors).read_bytes()

    generator, average = dit(1), dit(2, "model._fsdp_wrapped_module.")
    both = pickled(generator=generator, generator_ema=average, critic=dit(3))
    wan = {
        "config.json": json.dumps({"_class_name": "WanModel", "num_heads": 1}).encode(),
        "diffusion_pytorch_model.safetensors": plain(part("dit")),
        "Wan2.1_VAE.pth": pickled(**to_torch(part("vae"))),
        "models_t5_umt5-xxl-enc-bf16.pth": pickled(**to_torch(part("text"))),
        "google/umt5-xxl/spiece.model": tokenizer(),
    }
    whole = folder / "whole"
    diffusers_folder(whole, configs=small)
    tiny = random_tensors(BY_NAME["tiny_vae", "native"], NARROW["tiny_vae"])
    files = {
        WAN: wan,
        "Wan-AI/Wan2.1-T2V-14B": wan,
        "gdhe17/Self-Forcing": {
            "checkpoints/self_forcing_dmd.pt": both,
            "checkpoints/self_forcing_sid.pt": both,
            "checkpoints/ode_init.pt": pickled(generator=generator),
        },
        "TencentARC/RollingForcing": {
            "checkpoints/rolling_forcing_dmd.pt": pickled(generator_ema=average)
        },
        "Efficient-Large-Model/LongLive-1.3B": {
            "models/longlive_base.pt": pickled(generator=generator),
            "models/lora.pt": pickled(generator_lora=lora()),
        },
        "zhuhz22/Causal-Forcing": {
            "chunkwise/causal_forcing.pt": both,
            "framewise/causal_forcing.pt": both,
            "causal-forcing++/framewise-2step.pt": pickled(generator_ema=average),
            "causal-forcing++/framewise-1step.pt": pickled(generator_ema=average),
        },
        "JaydenLu666/Reward-Forcing-T2V-1.3B": {
            "rewardforcing.pt": pickled(generator=generator, generator_ema=average)
        },
        "SOTAMak1r/Infinite-Forcing": {"ema_model.pt": pickled(generator_ema=average)},
        "KlingTeam/MemFlow": {
            "base.pt": pickled(model=generator),
            "lora.pt": pickled(**lora()),
        },
        "krea/krea-realtime-video": {
            "krea-realtime-video-14b.safetensors": plain(part("dit", seed=1))
        },
        "SJTU-DENG-Lab/WaveForcing-T2V-1.3B-5step-Preview": {
            "model.safetensors": plain(random_tensors(diffusers, DIT, seed=1))
        },
        "wlsaidhi/SFWan2.1-T2V-1.3B-Diffusers": {
            path.relative_to(whole).as_posix(): path.read_bytes()
            for path in whole.rglob("*")
            if path.is_file()
        },
        "tianweiy/CausVid": {"autoregressive_checkpoint/model.pt": pickled(generator=generator)},
        "lightx2v/Autoencoders": {
            "taew2_1.safetensors": plain(tiny),
            "taew2_1.pth": pickled(**to_torch(tiny)),
            "lighttaew2_1.pth": pickled(**to_torch(tiny)),
        },
    }
    return {name: ({"license": "apache-2.0"}, content) for name, content in files.items()}


@contextlib.contextmanager
def serve(content: dict):
    """Serves `content` while the context lasts; what it gives has the server's `url`."""
    state = {"repositories": content, "wrong": set(), "cut": set(), "portal": "", "requests": []}
    handler = type("Handler", (Hub,), state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(url: str, cache: Path) -> dict[str, str]:
    """Of a process that takes the stand-in for the hub."""
    return os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "JAX_PLATFORMS": "cpu",
    }
