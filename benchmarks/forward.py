"""One pass of Wan-1.3B's transformer in float32 on this CPU, against torch with as many threads.

    python -m benchmarks forward              30 layers against diffusers; needs 14 GB
    python -m benchmarks forward --context    2 layers and 18 frames of context, against torch
    python -m benchmarks forward --part vae   Wan2.1's decoder of a small video, against diffusers
    python -m benchmarks forward --part text  2 layers of UMT5-XXL, against transformers

Three frames of 32x32 latents (768 tokens), for the decoder of 8x8, and for the text encoder 512
rows; true widths, random weights. Needs the extra `parity`.
"""

import argparse
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,  # pyright: ignore[reportPrivateImportUsage]  (lazy)
    WanTransformer3DModel,  # pyright: ignore[reportPrivateImportUsage]
)
from flax import nnx
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks._timing import interleaved, ratios, spread
from benchmarks._torch import BLOCK, sdpa_pass
from tt_jax.checkpoint import abstract
from tt_jax.models.dit import KV, DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.models.vae import VAEConfig
from tt_jax.strategies.schedule import time_sinusoid

FRAMES, SIDE, PAST = 3, 32, 18
PIXELS = 8  # side of the latents that are decoded
Arms = dict[str, Callable[[], object]]


def weights(
    part: str, config: DiTConfig | VAEConfig | TextConfig
) -> tuple[nnx.GraphDef, nnx.State]:
    """A part in two halves, with random weights."""
    graph, params = nnx.split(abstract(part, config, np.float32))
    return graph, jax.tree.map(lambda leaf: jnp.asarray(np.resize(BLOCK, leaf.shape)), params)


def ours(config: DiTConfig, slots: int) -> dict[str, Callable[[], jax.Array]]:
    """Our pass, the text's keys and values made in it and, as in a rollout, made before."""
    graph, params = weights("dit", config)
    tokens = (SIDE // config.patch) ** 2
    latents = jnp.ones((1, FRAMES, SIDE, SIDE, config.channels))
    rows = jnp.ones((1, config.text_len, config.text_dim))
    times = jnp.asarray(time_sinusoid(np.full((1, FRAMES), 0.5)))
    shape = (config.layers, 1, slots * tokens, config.heads, config.head_dim)
    context = KV(jnp.ones(shape), jnp.ones(shape)) if slots else None
    mask = jnp.ones((1, 1, (slots + FRAMES) * tokens), bool) if slots else None
    frames = slots + jnp.arange(FRAMES)

    @jax.jit
    def encode(params: nnx.State) -> KV:
        return nnx.merge(graph, params).encode_text(rows)

    @jax.jit
    def forward(params: nnx.State, text: KV | None, context: KV | None) -> jax.Array:
        dit = nnx.merge(graph, params)
        text = dit.encode_text(rows) if text is None else text
        return dit(latents, times, text, frames, context, mask)[0]

    text = encode(params)
    return {
        "tt_jax": lambda: forward(params, None, context),
        "tt_jax, text encoded before": lambda: forward(params, text, context),
    }


def diffusers_pass(config: DiTConfig) -> Callable[[], None]:
    """The pass of diffusers' model, which makes the text's keys and values in every pass."""
    model = WanTransformer3DModel(
        num_attention_heads=config.heads, attention_head_dim=config.head_dim,
        in_channels=config.channels, out_channels=config.channels, text_dim=config.text_dim,
        freq_dim=config.freq_dim, ffn_dim=config.ffn_dim, num_layers=config.layers,
    ).eval()  # fmt: skip
    latents = torch.ones(1, config.channels, FRAMES, SIDE, SIDE)
    rows, time = torch.ones(1, config.text_len, config.text_dim), torch.tensor([500])

    @torch.inference_mode()
    def forward() -> None:
        model(latents, time, rows, return_dict=False)

    return forward


def decoders(config: VAEConfig) -> Arms:
    """Latents to frames by either VAE, both frame by frame with a cache."""
    theirs = AutoencoderKLWan(
        base_dim=config.dim, z_dim=config.latent_channels, dim_mult=list(config.dim_mult),
        num_res_blocks=config.res_blocks, temperal_downsample=list(config.temporal_downsample),
    ).eval()  # fmt: skip
    graph, params = weights("vae", config)
    rows = torch.ones(1, config.latent_channels, FRAMES, PIXELS, PIXELS)
    latents = jnp.ones((1, FRAMES, PIXELS, PIXELS, config.latent_channels))
    ours = jax.jit(lambda params: nnx.merge(graph, params).decode(latents))

    @torch.inference_mode()
    def decode() -> None:
        theirs.decode(rows, return_dict=False)

    return {"diffusers": decode, "tt_jax": lambda: ours(params)}


def encoders(config: TextConfig) -> Arms:
    """A prompt's ids to rows by either text encoder."""
    theirs = UMT5EncoderModel(
        UMT5Config(
            vocab_size=config.vocab, d_model=config.dim, d_ff=config.ffn_dim,
            d_kv=config.attention_dim // config.heads, num_heads=config.heads,
            num_layers=config.layers, feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    graph, params = weights("text", config)
    ids, mask = np.ones((1, config.text_len), np.int32), np.ones((1, config.text_len), bool)
    ours = jax.jit(lambda params: nnx.merge(graph, params)(ids, mask))
    rows, seen = torch.from_numpy(ids), torch.from_numpy(mask)

    @torch.inference_mode()
    def encode() -> None:
        theirs(input_ids=rows, attention_mask=seen)

    return {"transformers": encode, "tt_jax": lambda: ours(params)}


def passes(options: argparse.Namespace) -> tuple[str, Arms]:
    """What is measured, and the arms: the first is what the others are measured against."""
    slots = PAST if options.context else 0
    config = DiTConfig(layers=options.layers or (2 if options.context else 30))
    what = f"{config.layers} layers, {slots} frames of context"
    if not options.context:
        return what, {"diffusers": diffusers_pass(config), **ours(config, slots)}
    arms = {"torch, SDPA": sdpa_pass(config, slots, FRAMES, (SIDE, SIDE)), **ours(config, slots)}
    del arms["tt_jax"]  # the text's keys and values are at hand on both sides
    return what, arms


def main(argv: list[str]) -> None:
    """Prints the table; ratios are to torch, within each repetition."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks forward", description=__doc__)
    parser.add_argument("--part", choices=["dit", "vae", "text"], default="dit")
    parser.add_argument("--context", action="store_true", help="two layers over 18 frames")
    parser.add_argument("--layers", type=int, help="30, with --context and of the text encoder 2")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(argv)

    threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    torch.set_num_threads(threads)
    if options.part == "vae":
        side = 8 * PIXELS
        what, arms = (
            f"VAE's decoder, {FRAMES} latent frames of {side}x{side}",
            decoders(VAEConfig()),
        )
    elif options.part == "text":
        config = TextConfig(512, 4096, 4096, 10240, 64, options.layers or 2)
        what, arms = (
            f"text encoder, {config.layers} layers, {config.text_len} rows",
            encoders(config),
        )
    else:
        what, arms = passes(options)
    base = next(iter(arms))
    seconds = interleaved(arms, options.repeats)

    print(f"{what}, {threads} threads, torch ", end="")
    print(f"{torch.__version__}, {options.repeats} repetitions: median (lowest to highest)")
    print(f"| | seconds | relative to {base} |")
    print("|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {spread(values, 2)} | {spread(ratios(values, seconds[base]), 2)} |")
