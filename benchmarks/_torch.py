"""What the transformer is measured against: its layers in plain torch."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from tt_jax.models.dit import DiTConfig

BLOCK = np.random.default_rng(0).standard_normal(1 << 22, np.float32) * np.float32(0.02)


def sdpa_pass(
    config: DiTConfig,
    slots: int,
    frames: int,
    grid: tuple[int, int],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[], None]:
    """The layers of a pass over a context, in torch: the same products and the same attention,
    with keys and values of the text at hand; the few products outside the layers left out.

    On a GPU it is compiled by torch.compile, and all of the context is valid: no mask.
    """
    d, place = config.dim, {"device": device, "dtype": dtype}
    tokens = (grid[0] // config.patch) * (grid[1] // config.patch)
    own, past = frames * tokens, slots * tokens
    shapes = dict.fromkeys(("q", "k", "v", "o", "cross_q", "cross_o"), (d, d)) | {
        "up": (config.ffn_dim, d),
        "down": (d, config.ffn_dim),
    }
    layers = [
        {
            name: torch.from_numpy(np.resize(BLOCK, shape)).to(**place)
            for name, shape in shapes.items()
        }
        for _ in range(config.layers)
    ]
    heads = (1, -1, config.heads, config.head_dim)
    context, text = torch.ones(1, past, d, **place), torch.ones(1, config.text_len, d, **place)
    mask = torch.ones(1, 1, 1, past + own, dtype=torch.bool) if device == "cpu" else None
    shift, scale, gate = (torch.full((1, own, d), x, **place) for x in (0.1, 0.2, 0.3))
    angles = torch.ones(own, 1, config.head_dim // 2, device=device)
    cos, sin = angles.cos(), angles.sin()
    one, zero = torch.ones(d, **place), torch.zeros(d, **place)

    def attend(q, k, v, mask=None):
        parts = (x.reshape(heads).transpose(1, 2) for x in (q, k, v))
        y = functional.scaled_dot_product_attention(*parts, attn_mask=mask)
        return y.transpose(1, 2).reshape(1, -1, d)

    def rotated(x):
        even, odd = x.float().reshape(1, own, config.heads, -1, 2).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
        return turned.reshape(x.shape).to(x.dtype)

    def modulated(x):
        return functional.layer_norm(x, (d,)) * (1 + scale) + shift

    def normed(x):
        return functional.rms_norm(x, (d,), one)

    def through(x):
        for w in layers:
            y = modulated(x)
            q, k = (rotated(normed(functional.linear(y, w[name]))) for name in "qk")
            k = torch.cat([context, k], 1)
            v = torch.cat([context, functional.linear(y, w["v"])], 1)
            x = x + functional.linear(attend(q, k, v, mask), w["o"]) * gate
            y = normed(functional.linear(functional.layer_norm(x, (d,), one, zero), w["cross_q"]))
            x = x + functional.linear(attend(y, text, text), w["cross_o"])
            y = functional.gelu(functional.linear(modulated(x), w["up"]), approximate="tanh")
            x = x + functional.linear(y, w["down"]) * gate
        return x

    start = torch.ones(1, own, d, **place)
    run = through if device == "cpu" else torch.compile(through)

    @torch.inference_mode()
    def forward() -> None:
        run(start)
        if device != "cpu":
            torch.cuda.synchronize()

    return forward
