"""Which model a file's tensors are, told by their names: its layout, and what is wrapped around it.

Training and other programs wrap a state dict into further dicts (`{"state_dict": ...}`), put words
in front of all names (`net.`, `generator.model.`), and store what isn't a model's beside it.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from convert import dit, text, tiny_vae, vae
from convert.layout import Table
from convert.problems import BadInput
from convert.tensors import DTYPES, Tensor, unconvertible
from tt_jax.models.dit import DiTConfig
from tt_jax.models.text import TextConfig
from tt_jax.models.tiny_vae import TinyVAEConfig
from tt_jax.models.vae import VAEConfig

PUBLISHED = {
    "dit": DiTConfig(),
    "vae": VAEConfig(),
    "text": TextConfig.umt5_xxl(),
    "tiny_vae": TinyVAEConfig.wan2_1(),
}

# Words that wrappers of torch leave anywhere in a name.
WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
# Where there are several models: what others were trained with, what was trained to be used, and
# moving averages.
OPPONENTS = {"critic", "teacher", "discriminator", "fake", "real"}
TRAINED = {"generator", "student"}
AVERAGE = "ema"
# A tokenizer stored as a tensor of bytes (ComfyUI's text encoders).
TOKENIZER = "spiece_model"
# What isn't a model's, by the end of its name: tables that can be computed, marks, and counters.
BUFFERS = re.compile(r"(^|\.)(freqs|freqs_(cis|cos|sin)|inv_freq|scaled_fp8)$")
COUNTERS = re.compile(
    r"(^|\.)((global_|current_)?(step|epoch|iteration|iter)s?|num_updates|n_averaged|initted|decay"
    r"|num_batches_tracked)$"
)
LORA = re.compile(r"(^|[._])(lora|lokr|loha|hada|dora)[._]", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way of naming and shaping one part's arrays.

    Attributes:
        part: The part of a model, a key of `PUBLISHED`.
        name: What the layout is called.
        table: Its rows, for a config.
    """

    part: str
    name: str
    table: Callable[[Any], Table]

    @cache  # noqa: B019 (there are seven)
    def vocabulary(self) -> frozenset[str]:
        """All names, as patterns."""
        rows = self.table(PUBLISHED[self.part])
        return frozenset(pattern(name) for row in rows for name in (row.name, *row.copies))


LAYOUTS = (
    Layout("dit", "native", dit.native),
    Layout("dit", "diffusers", dit.diffusers),
    Layout("vae", "native", vae.native),
    Layout("vae", "diffusers", vae.diffusers),
    Layout("text", "native", text.native),
    Layout("text", "transformers", text.transformers),
    Layout("tiny_vae", "native", tiny_vae.native),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """A tensor and its names.

    Attributes:
        name: The layout's.
        source: The source's own.
        tensor: The values.
    """

    name: str
    source: str
    tensor: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """One model's tensors within a file.

    Attributes:
        layout: How they are named.
        wrapper: The keys of the dicts around them, joined by dots; "" without any.
        prefix: What stood in front of every name; "" if nothing did.
        tensors: All that the file has for it, unexpected ones included.
        extras: Names of what isn't a model's and is left out.
        tokenizer: The bytes of a tokenizer that was stored with it.
        choice: Whether the file has, or names it as, a trained model or its moving average.
    """

    layout: Layout
    wrapper: str
    prefix: str
    tensors: tuple[Named, ...]
    extras: tuple[str, ...] = ()
    tokenizer: bytes | None = None
    choice: bool = False

    @property
    def words(self) -> set[str]:
        """The words of what was around it."""
        return set(re.split(r"[._]", f"{self.wrapper}.{self.prefix}".lower()))


def pattern(name: str) -> str:
    """A name with every word that is a number, or the place for one, as #."""
    return re.sub(r"(?<![^.])(\d+|\{i\})(?![^.])", "#", name)


def model_in(
    path: Path, dicts: Mapping[tuple[str, ...], Mapping[str, Tensor]], ema: bool | None
) -> Model:
    """The model that a file holds.

    Args:
        path: The file, for the messages.
        dicts: Its tensors by name, for each dict in it that has any.
        ema: Of a model and its moving average, take the average (True) or the model (False); the
            average where there is one if None.

    Returns:
        The model, with the names that its layout has.

    Raises:
        BadInput: There is none, there are several, its values can't be converted, or it is a LoRA.
    """
    for tensors in dicts.values():
        if lora := next(filter(LORA.search, tensors), None):
            raise BadInput(
                [
                    f"{path} is a LoRA, or holds one ({lora}): an addition to a model. Convert the "
                    f"model that it was made for, and add it: --lora {path}."
                ]
            )
    found = [model for keys, tensors in dicts.items() for model in _models(keys, tensors)]
    if not found:
        names = [name for tensors in dicts.values() for name in tensors]
        raise BadInput(
            [
                f"{path} isn't the transformer, VAE or text encoder of a Wan model: its tensors "
                f"are {', '.join(names[:3])}, ..."
            ]
        )
    model = _choose(path, found, ema)
    if problems := list(_inconvertible(path, model)):
        raise BadInput(problems)
    return model


def _models(keys: tuple[str, ...], tensors: Mapping[str, Tensor]) -> list[Model]:
    """The models in one dict: one, or several in one layout with different prefixes."""
    words = {name: name_words(name) for name in tensors}
    extras = tuple(name for name, tensor in tensors.items() if is_extra(name, tensor))
    named = [name for name in tensors if name not in extras]
    votes: Counter[tuple[Layout, tuple[str, ...]]] = Counter()
    for name in named:
        votes.update(fits(words[name]))
    if not votes:
        return []
    (layout, _), most = votes.most_common(1)[0]
    prefixes = [p for (one, p), count in votes.items() if one is layout and 2 * count >= most]
    if 2 * sum(votes[layout, prefix] for prefix in prefixes) <= len(named):
        return []
    models: dict[tuple[str, ...], list[Named]] = {prefix: [] for prefix in prefixes}
    token = None
    for name in named:
        prefix = _within(words[name], prefixes)
        if words[name][-1] == TOKENIZER and layout.part == "text":
            token = tensors[name].tobytes()
        elif prefix is None:
            for one in models.values():  # no layout's name has a slash: this one is unexpected
                one.append(Named(f"/{name}", name, tensors[name]))
        else:
            short = ".".join(words[name][len(prefix) :])
            models[prefix].append(Named(short, name, tensors[name]))
    return [
        Model(layout, ".".join(keys), ".".join(prefix), tuple(found), extras, token)
        for prefix, found in models.items()
    ]


def name_words(name: str) -> tuple[str, ...]:
    """The words of a name, without those that wrappers of torch leave in it."""
    return tuple(word for word in name.split(".") if word not in WRAPPERS)


def is_extra(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is no model's: a table, a mark or a counter.

    Args:
        name: its name.
        tensor: what it holds.

    Returns:
        True for those that conversion leaves out.
    """
    return bool(BUFFERS.search(name) or (tensor.size <= 1 and COUNTERS.search(name)))


def fits(
    words: tuple[str, ...], part: str | None = None
) -> Iterable[tuple[Layout, tuple[str, ...]]]:
    """The layouts, of one part or all, that know the end of a name.

    Args:
        words: The name's.
        part: Whose layouts; all if None.

    Yields:
        Each layout with the words in front of what it knows.
    """
    ends = [pattern(".".join(words[i:])) for i in range(len(words))]
    for layout in (layout for layout in LAYOUTS if part in (None, layout.part)):
        i = next((i for i, end in enumerate(ends) if end in layout.vocabulary()), None)
        if i is not None:
            yield layout, words[:i]


def _within(words: tuple[str, ...], prefixes: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The longest of the prefixes that a name has."""
    having = [prefix for prefix in prefixes if words[: len(prefix)] == prefix]
    return max(having, key=len, default=None)


def _choose(path: Path, models: list[Model], ema: bool | None) -> Model:
    """The one to take of all models in a file. Raises BadInput."""
    models = [model for model in models if not model.words & OPPONENTS] or models
    averages = _trained([model for model in models if AVERAGE in model.words])
    others = _trained([model for model in models if AVERAGE not in model.words])
    labels = ", ".join(_label(model) for model in models)
    choice = len(models) > 1 or bool(models[0].words & {*TRAINED, AVERAGE})
    if ema is None or not choice:  # a file without it may lie beside one that has it
        chosen = averages or others
    else:
        chosen = averages if ema else others
        if not chosen:
            what = "moving average" if ema else "model but its moving average"
            raise BadInput([f"{path} has no {what}, only {labels}."])
    if len(chosen) > 1:
        raise BadInput([f"{path} holds several models, save the one you want alone: {labels}."])
    return dataclasses.replace(chosen[0], choice=choice)


def _trained(models: list[Model]) -> list[Model]:
    """Those that are called so, or all."""
    return [model for model in models if model.words & TRAINED] or models


def _label(model: Model) -> str:
    return ".".join(filter(None, (model.wrapper, model.prefix))) or "one without a name"


def _inconvertible(path: Path, model: Model) -> Iterable[str]:
    """A line for each dtype that can't be converted, and for each tensor without values."""
    known = [x for x in model.tensors if pattern(x.name) in model.layout.vocabulary()]
    dtypes = Counter(x.tensor.dtype for x in known if x.tensor.dtype not in DTYPES.values())
    for dtype, count in dtypes.items():
        yield unconvertible(path, dtype.name, count, len(known))
    if not dtypes:
        for x in known:
            if x.tensor.size == 0:
                yield f"{path}: {x.source} of shape {list(x.tensor.shape)} has no values."
