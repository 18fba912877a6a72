"""Prompts to tokens: the clean-up that Wan applies to a prompt, then sentencepiece as in UMT5."""

import html
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import ftfy
import numpy as np
import sentencepiece
from jaxtyping import Bool, Int32

from tt_jax.errors import ModelError

PAD, END, UNKNOWN = 0, 1, 2  # UMT5's special tokens


def clean(prompt: str) -> str:
    """Repairs broken Unicode, resolves HTML entities (twice) and collapses white space."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


class Vocabulary(NamedTuple):
    """What a small model was trained with.

    Attributes:
        words: all words that it knows, in lower case.
        draws: what it can draw, as a phrase.
    """

    words: frozenset[str]
    draws: str

    def unknown(self, prompt: str) -> list[str]:
        """Words of a prompt that aren't among them, each once, in order."""
        found = re.findall(r"\w[\w'-]*", clean(prompt).lower())
        return [word for word in dict.fromkeys(found) if word not in self.words]


class Tokenizer:
    """Cleans prompts and splits them into exactly `text_len` tokens of a sentencepiece model.

    Args:
        model: the model file's bytes, or its path.
        text_len: number of tokens, the end token and padding included.
        vocabulary: of a model that knows few words: others are named in a warning.

    Raises:
        ModelError: there is no such file, or it isn't a sentencepiece model.
    """

    def __init__(
        self,
        model: bytes | str | PathLike[str],
        text_len: int,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.text_len = text_len
        self.vocabulary = vocabulary
        self._pieces = sentencepiece.SentencePieceProcessor()
        name = "the tokenizer" if isinstance(model, bytes) else fspath(model)
        try:
            data = model if isinstance(model, bytes) else Path(model).read_bytes()
            self._pieces.LoadFromSerializedProto(data)
        except FileNotFoundError:
            raise ModelError(f"{name} is missing: convert the model again.") from None
        except (OSError, RuntimeError, ValueError):  # whose texts are of sentencepiece's source
            raise ModelError(f"{name} is no tokenizer, or is damaged: convert it again.") from None

    @property
    def vocab(self) -> int:
        """The number of pieces in the model."""
        return self._pieces.GetPieceSize()

    def __call__(
        self, prompts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
        """Tokens of prompts. Warns of one that is too long, naming the text that is left out, and
        of words that the model was never shown.

        Args:
            prompts: B texts.

        Returns:
            Token ids `[B, text_len]`, int32, each prompt's end token included and padded with 0,
            and where they are valid.
        """
        ids = np.full((len(prompts), self.text_len), PAD, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, prompt in enumerate(prompts):
            if self.vocabulary and (unknown := self.vocabulary.unknown(prompt)):
                warnings.warn(
                    f"Prompt {row} has words that the model doesn't know: {', '.join(unknown)}. "
                    f"It draws {self.vocabulary.draws}.",
                    stacklevel=2,
                )
            tokens = self._pieces.Encode(clean(prompt))
            kept, cut = tokens[: self.text_len - 1], tokens[self.text_len - 1 :]
            if cut:
                warnings.warn(
                    f"Prompt {row} has {len(tokens) + 1} tokens and the model reads "
                    f"{self.text_len}: everything from {self._pieces.Decode(cut)[:60]!r} on is "
                    "left out.",
                    stacklevel=2,
                )
            ids[row, : len(kept) + 1] = [*kept, END]
            mask[row, : len(kept) + 1] = True
        return ids, mask


def train_sentencepiece(captions: Iterable[str], vocab: int = 512) -> bytes:
    """Trains a small sentencepiece model with UMT5's special tokens. Deterministic.

    Byte pairs are merged until `vocab` pieces are reached or every word is a single piece, so the
    model may have fewer. The 256 bytes are pieces too: any text can be split. Upper case is read
    as lower case.

    Args:
        captions: texts to learn the pieces from.
        vocab: number of pieces, at most.

    Returns:
        The bytes of the model's file.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=(clean(caption) for caption in captions),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=1.0,
        pad_id=PAD,
        eos_id=END,
        unk_id=UNKNOWN,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
