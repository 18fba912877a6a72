"""Models that are published, and how their authors use them; data, from public sources.

What no source says is unknown here, and asked for when the model is used.
"""

import dataclasses
from collections.abc import Mapping

from convert.checkpoints import BIDIRECTIONAL, CAUSAL, UNKNOWN
from tt_jax.models.configs import RolloutConfig


@dataclasses.dataclass(frozen=True)
class Published:
    """Files of a repository.

    Attributes:
        repository: Its name.
        files: For each part of a model, patterns of the files' names; of several that end in `.*`
            the safetensors file is taken.
        lora: Patterns of files that are added to the transformer's weights.
    """

    repository: str
    files: Mapping[str, tuple[str, ...]]
    lora: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Known:
    """A published model.

    Attributes:
        published: Its own files.
        kind: What its transformer was trained to do.
        licence: Of the weights, with what contradicts it.
        base: The key in `KNOWN` of the model whose other parts it uses.
        weights: Which of the weights in its file are meant, in words.
        ema: Whether they are the moving average; where there is one, if None.
        rollout: How it was trained to be rolled out; None for what isn't rolled out.
        disk: Bytes of its own files; None if unknown.
    """

    published: Published
    kind: str
    licence: str
    base: str | None = None
    weights: str = "the only ones"
    ema: bool | None = None
    rollout: RolloutConfig | None = None
    disk: float | None = None


TOKENIZER = "google/umt5-xxl/spiece.model"
SETTINGS = "config.json"
EMA, NO_EMA, EITHER = "moving average", "no moving average", "unknown; the average if there is one"
WAN = {
    "dit": ("diffusion_pytorch_model*.safetensors*", SETTINGS),
    "vae": ("Wan2.1_VAE.pth",),
    "text": ("models_t5_umt5-xxl-enc-bf16.pth", TOKENIZER),
}
DIFFUSERS = {
    "dit": ("transformer/*.safetensors*", "transformer/config.json"),
    "vae": ("vae/*.safetensors", "vae/config.json"),
    "text": (
        "text_encoder/*.safetensors*",
        "text_encoder/config.json",
        "tokenizer/spiece.model",
    ),
}
SMALL, LARGE = "wan2.1-1.3b", "wan2.1-14b"
APACHE, OF_CODE = "Apache-2.0", "Apache-2.0 (of the code's repository)"
SELF_FORCING = RolloutConfig()


def _one(repository: str, file: str, *lora: str) -> Published:
    return Published(repository, {"dit": (file,)}, lora)


def _unknown(*names: str, lacks: str | None = None, **known: object) -> RolloutConfig:
    return dataclasses.replace(SELF_FORCING, unknown=names, lacks=lacks, **known)


CAUSAL_FORCING = "zhuhz22/Causal-Forcing"
# A generator is a transformer alone: its other parts are those of the model it was made from.
KNOWN = {
    "self-forcing": Known(
        _one("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt"), CAUSAL,
        "CC BY-NC-SA 4.0 by the model's card, Apache-2.0 by the code's repository: conflict",
        SMALL, EMA, True, SELF_FORCING,
    ),
    "self-forcing-sid": Known(
        _one("gdhe17/Self-Forcing", "checkpoints/self_forcing_sid.pt"), CAUSAL,
        "CC BY-NC-SA 4.0 by the model's card, Apache-2.0 by the code's repository: conflict",
        SMALL, EMA, True, SELF_FORCING,
    ),
    "rolling-forcing": Known(
        _one("TencentARC/RollingForcing", "checkpoints/rolling_forcing_dmd.pt"), CAUSAL,
        "MIT by the model's card, academic use only by the code's repository: conflict",
        SMALL, EMA, True,
        RolloutConfig(steps=(1000, 800, 600, 400, 200), strategy="rolling-forcing"), 16e9,
    ),
    "longlive": Known(
        _one(
            "Efficient-Large-Model/LongLive-1.3B", "models/longlive_base.pt", "models/lora.pt"
        ),
        CAUSAL, APACHE, SMALL, NO_EMA, None,
        RolloutConfig(window=12, sink=3, cache="long-live:frames=12,sink=3"),
    ),
    "causal-forcing": Known(
        _one(CAUSAL_FORCING, "chunkwise/causal_forcing.pt"), CAUSAL, APACHE, SMALL, NO_EMA, False,
        SELF_FORCING,
    ),
    "causal-forcing-framewise": Known(
        _one(CAUSAL_FORCING, "framewise/causal_forcing.pt"), CAUSAL, APACHE, SMALL, EMA, True,
        RolloutConfig(chunk=1),
    ),
    "causal-forcing-2step": Known(
        _one(CAUSAL_FORCING, "*framewise-2step.pt"), CAUSAL, APACHE, SMALL, EITHER, None,
        _unknown("steps", "shift", chunk=1),
    ),
    "causal-forcing-1step": Known(
        _one(CAUSAL_FORCING, "*framewise-1step.pt"), CAUSAL, APACHE, SMALL, EITHER, None,
        _unknown("steps", "shift", chunk=1),
    ),
    "reward-forcing": Known(
        _one("JaydenLu666/Reward-Forcing-T2V-1.3B", "rewardforcing.pt"), CAUSAL, APACHE, SMALL,
        EMA, None, RolloutConfig(window=9, sink=3, cache="ema-sink:frames=9,sink=3"),
    ),
    "infinite-forcing": Known(
        _one("SOTAMak1r/Infinite-Forcing", "ema_model.pt"), CAUSAL, OF_CODE, SMALL, EMA, None,
        _unknown("window", "sink", lacks="a V-sink"),
    ),
    "memflow": Known(
        _one("KlingTeam/MemFlow", "base.pt", "lora.pt"), CAUSAL, APACHE, SMALL, NO_EMA, None,
        _unknown("window", "sink", lacks="a bank of three frames, chosen by the text"),
    ),
    "krea-realtime-14b": Known(
        _one("krea/krea-realtime-video", "krea-realtime-video-14b.safetensors"), CAUSAL,
        "CC BY-NC-SA 4.0 (of the repository)", LARGE, rollout=_unknown(
            "window", "sink", steps=(1000, 937, 833, 625), shift=None,
            lacks="a context that is computed anew for every chunk",
        ),
        disk=28e9,
    ),
    "wave-forcing": Known(
        _one("SJTU-DENG-Lab/WaveForcing-T2V-1.3B-5step-Preview", "model.safetensors"), CAUSAL,
        APACHE, SMALL,
        rollout=_unknown("shift", "window", "sink", steps=(1000, 800, 600, 400, 200)),
    ),
    "fastvideo-sfwan": Known(
        Published("wlsaidhi/SFWan2.1-T2V-1.3B-Diffusers", DIFFUSERS), CAUSAL, "unknown",
        rollout=SELF_FORCING,
    ),
    "causvid": Known(
        _one("tianweiy/CausVid", "autoregressive_checkpoint/model.pt"), CAUSAL, "CC BY-NC-SA 4.0",
        SMALL, NO_EMA, None, _unknown("shift", "window", "sink", steps=(1000, 757, 522)),
    ),
    SMALL: Known(Published("Wan-AI/Wan2.1-T2V-1.3B", WAN), BIDIRECTIONAL, APACHE),
    LARGE: Known(Published("Wan-AI/Wan2.1-T2V-14B", WAN), BIDIRECTIONAL, APACHE),
    "taew2_1": Known(
        Published("lightx2v/Autoencoders", {"tiny_vae": ("taew2_1.*",)}), UNKNOWN,
        "MIT by TAEHV, Apache-2.0 by the repository",
    ),
}  # fmt: skip
