"""Teaches the text encoder, before anything else, what captions say.

The transformer can only follow words that the encoder tells apart, and the encoder only learns from
the transformer what that has begun to follow. Asked for every fact of a scene directly, it learns
all of them within minutes. The questions are dropped afterwards.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tt_jax.shapes.optimise import Params
from tt_jax.shapes.world import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIZES, SPEEDS, Scene

_ANSWERS = (
    *[(*SHAPES,), (*COLOURS,), (*SIZES,), (*DIRECTIONS,), (*SPEEDS,)] * 2,
    (*BACKGROUNDS,),
    ("left", "right"),
)
ANSWERS = 1 + max(map(len, _ANSWERS))  # the first one is "none"
QUESTIONS = len(_ANSWERS)


def answers(scene: Scene) -> Int[np.ndarray, " questions"]:
    """The number of the right answer to each question about a scene."""
    said = []
    for index in range(2):
        thing = scene.objects[index] if index < len(scene.objects) else None
        names = ("shape", "colour", "size", "direction", "speed")
        said += [getattr(thing, name, None) for name in names]
    said += [scene.background, scene.pan]
    return np.array(
        [
            0 if name is None else 1 + known.index(name)
            for name, known in zip(said, _ANSWERS, strict=True)
        ]
    )


def questions(rng: np.random.Generator, dim: int) -> Params:
    """Initial parameters of the questions: what each attends to, and a linear map to answers."""
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
    """Mean cross-entropy of what is read from captions' encoded rows, and the share of it right."""
    scores = jnp.einsum("bld,qd->bql", rows, params["attention"]) * rows.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9), axis=-1)
    read = jnp.einsum("bql,bld->bqd", weights, rows)
    logits = jnp.einsum("bqd,qda->bqa", read, params["answer"])
    chosen = jax.nn.log_softmax(logits) * jax.nn.one_hot(right, ANSWERS)
    return -jnp.mean(jnp.sum(chosen, axis=-1)), jnp.mean(jnp.argmax(logits, axis=-1) == right)
