"""Captions on the device: token ids of what `language.caption` would say, made of phrases.

Every word of the grammar is split into pieces by itself, so the pieces of a caption are those of
its phrases, one after the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from tt_jax.models.tokenizer import END, PAD, Tokenizer
from tt_jax.shapes import language
from tt_jax.shapes.training.scenes import Scenes


class Phrases(NamedTuple):
    """Pieces of many phrases, padded to the longest.

    Attributes:
        ids: of the pieces.
        length: how many each phrase has.
    """

    ids: Int[np.ndarray, "*n m"]
    length: Int[np.ndarray, " *n"]


class Grammar(NamedTuple):
    """The pieces of every phrase of `language.phrases`, and of the words between them.

    Attributes:
        size: `[size, phrasing]`.
        colour: `[colour, phrasing]`.
        shape: `[shape, phrasing]`.
        place: `[place, phrasing]`; the first place is "not named", without a word.
        move: `[direction, speed, phrasing]`; the first direction is at rest.
        ground: `[background, phrasing]`.
        camera: `[pan, phrasing]`.
        words: "a", "and", "both", ",".
    """

    size: Phrases
    colour: Phrases
    shape: Phrases
    place: Phrases
    move: Phrases
    ground: Phrases
    camera: Phrases
    words: Phrases


def read_grammar(tokenizer: Tokenizer) -> Grammar:
    """The phrases of the world, split into a tokenizer's pieces."""

    def split(text: str) -> list[int]:
        ids, mask = tokenizer([text])
        return ids[0, : mask[0].sum() - 1].tolist()  # without the end

    comma = split("red,")[len(split("red")) :]

    def pieces(text: str) -> list[int]:
        parts = [split(part.strip()) if part.strip() else [] for part in text.split(",")]
        return [piece for i, part in enumerate(parts) for piece in (comma if i else []) + part]

    def phrases(table: Sequence) -> Phrases:
        texts = np.array(table)
        found = [pieces(str(text)) for text in texts.ravel()]
        ids = np.full((len(found), max(map(len, found))), PAD, np.int32)
        for row, part in zip(ids, found, strict=True):
            row[: len(part)] = part
        count = np.array([len(part) for part in found], np.int32)
        return Phrases(ids.reshape(*texts.shape, -1), count.reshape(texts.shape))

    tables = language.phrases() | {"words": ["a", "and", "both", ","]}
    return Grammar(**{name: phrases(table) for name, table in tables.items()})


def say(
    key: Key[Array, ""], grammar: Grammar, scenes: Scenes, length: int
) -> tuple[Int[Array, "b l"], Bool[Array, "b l"]]:
    """A caption of every scene, in phrasings drawn.

    Args:
        key: of the draws.
        grammar: the pieces to say it with.
        scenes: what is shown.
        length: rows of the text encoder's input; longer captions would be cut.

    Returns:
        Token ids, and which of them are there.
    """

    def one(key: Key[Array, ""], scene: Scenes) -> tuple[Array, Array]:
        keys = iter(jax.random.split(key, 16))

        def pick(phrases: Phrases, *at: Array) -> tuple[Array, Array]:
            ids, count = (jnp.asarray(x)[at] for x in phrases)
            drawn = jax.random.randint(next(keys), (), 0, len(count))
            return ids[drawn], count[drawn]

        def only(part: tuple[Array, Array], when: Array) -> tuple[Array, Array]:
            return part[0], jnp.where(when, part[1], 0)

        def known(phrases: Phrases, *at: Array | int) -> tuple[Array, Array]:
            return jnp.asarray(phrases.ids)[at], jnp.asarray(phrases.length)[at]

        a, also, both, comma = (known(grammar.words, i) for i in range(4))
        pair = scene.there[1]
        moves = jnp.stack([scene.direction, jnp.where(scene.direction > 0, scene.speed, 0)])
        alike = pair & (moves[:, 0] == moves[:, 1]).all()

        def noun(i: int) -> list:
            return [
                a,
                pick(grammar.size, scene.size[i]),
                known(grammar.colour, scene.colour[i]),
                known(grammar.shape, scene.shape[i]),
                pick(grammar.place, scene.place[i]),
            ]

        first, second = (pick(grammar.move, *moves[:, i]) for i in range(2))
        rest = [also, *noun(1), only(both, alike), second]
        subject = [*noun(0), only(first, ~alike), *(only(part, pair) for part in rest)]
        ground = [pick(grammar.ground, scene.background)]
        last = [pick(grammar.camera, scene.pan)]
        before = jax.random.bernoulli(next(keys))
        parts = [
            *(only(part, before) for part in [*ground, comma]),
            *subject,
            *(only(part, ~before) for part in ground),
            *last,
        ]
        ids, mask = _join(parts, length)
        return ids, mask

    return jax.vmap(one)(jax.random.split(key, len(scenes.pan)), scenes)


def _join(parts: list[tuple[Array, Array]], length: int) -> tuple[Array, Array]:
    """One phrase after the other, then the end, then padding."""
    ids, at = jnp.full(length, PAD, jnp.int32), jnp.zeros((), jnp.int32)
    for phrase, count in [*parts, (jnp.array([END]), jnp.ones((), jnp.int32))]:
        place = jnp.arange(len(phrase))
        target = jnp.where(place < count, at + place, length)
        ids = ids.at[target].set(phrase, mode="drop")
        at = at + count
    return ids, jnp.arange(length) < at
