"""Teaches the text encoder, before anything else, what captions say.

The transformer can only follow words that the encoder tells apart, and the encoder only learns from
the transformer what that has begun to follow. Asked for every fact of a scene directly, it learns
all of them within minutes. The questions are dropped afterwards.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tt_jax.shapes.training.optimise import Params
from tt_jax.shapes.training.scenes import Scenes, cells
from tt_jax.shapes.world import BACKGROUNDS, COLOURS, DIRECTIONS, PLACES, SHAPES, SIZES, SPEEDS

# How many answers each question has; "not there" and the like are one of them.
_OBJECT = [1 + len(table) for table in (SHAPES, COLOURS, SIZES, DIRECTIONS, SPEEDS, PLACES)]
_COUNTS = [*_OBJECT, *_OBJECT, len(BACKGROUNDS), 3]
ANSWERS, QUESTIONS = max(_COUNTS), len(_COUNTS)


def answers(scenes: Scenes) -> Int[Array, "b questions"]:
    """The number of the right answer to each question about each scene."""
    moving = scenes.direction > 0
    facts = [scenes.shape, scenes.colour, scenes.size]
    facts = [1 + fact for fact in facts] + [
        scenes.direction,
        jnp.where(moving, 1 + scenes.speed, 0),
    ]
    # Also where a caption leaves the place open: the transformer has to know.
    facts = jnp.stack([*facts, 1 + cells(scenes)], axis=-1)
    facts = jnp.where(scenes.there[..., None], facts, 0)
    ends = jnp.stack([scenes.background, scenes.pan], axis=-1)
    return jnp.concatenate([facts.reshape(len(ends), -1), ends], axis=-1)


def questions(rng: np.random.Generator, dim: int) -> Params:
    """Initial parameters of the questions: what each attends to, and a linear map to answers.

    Args:
        rng: what they are drawn from.
        dim: width of the text encoder's rows.

    Returns:
        Arrays by name.
    """
    return {
        "attention": rng.normal(size=(QUESTIONS, dim)).astype(np.float32),
        "answer": (dim**-0.5 * rng.normal(size=(QUESTIONS, dim, ANSWERS))).astype(np.float32),
    }


def reading_loss(
    params: Params,
    rows: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
    right: Int[Array, "b questions"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How well a text encoder's rows say what captions say.

    Args:
        params: of the questions.
        rows: encoded captions.
        mask: the rows that are there.
        right: answers.

    Returns:
        Mean cross-entropy of the answers, and the share of captions of which all is read rightly.
    """
    scores = jnp.einsum("bld,qd->bql", rows, params["attention"]) * rows.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9), axis=-1)
    read = jnp.einsum("bql,bld->bqd", weights, rows)
    logits = jnp.einsum("bqd,qda->bqa", read, params["answer"])
    chosen = jax.nn.log_softmax(logits) * jax.nn.one_hot(right, ANSWERS)
    all_right = jnp.all(jnp.argmax(logits, axis=-1) == right, axis=-1)
    return -jnp.mean(jnp.sum(chosen, axis=-1)), jnp.mean(all_right)
