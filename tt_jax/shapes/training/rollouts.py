"""The model's own rollouts as the past of what it is asked for, and what should come after them.

Axes: B sample, F latent frame.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from tt_jax._rollout import rollout
from tt_jax.models.vae import VAE
from tt_jax.shapes.training.continuation import SEEN, go_on
from tt_jax.shapes.training.optimise import Params
from tt_jax.shapes.training.scenes import Scenes, render
from tt_jax.shapes.training.stages import Maker, Pool
from tt_jax.strategies.presets import own
from tt_jax.trim.tokentrim import TokenTrim


def own_past(maker: Maker, vae: VAE, pool: Pool) -> Callable[[Params, Key[Array, ""]], Pool]:
    """The pool with the model's own rollouts as the past, and what should come after it.

    A rollout is made from the caption alone, `recipe.own_chunks` long; some chunks of it are the
    past, `recipe.own_pasts` times. After each of them the scene goes on from where the rollout
    shows it (`continuation`), so that a chunk is never asked to jump to where the clip would be.

    Args:
        maker: what the stages share.
        vae: what decodes the rollouts and encodes what comes after them.
        pool: clips.

    Returns:
        Makes that pool, with each clip as often as its rollout gives a past, of parameters and a
        key.
    """
    recipe, rollout_config = maker.recipe, maker.config.rollout
    chunks, (height, width) = pool.latents.shape[1] // rollout_config.chunk, pool.latents.shape[2:4]
    strategy = own(rollout_config)
    graph, state = nnx.split(vae)

    def make(params: Params, key: Key[Array, ""]) -> Pool:
        dit, encoder = maker.models(params)
        speak, *keys = jax.random.split(key, 1 + -(-len(pool.latents) // recipe.encode))
        text = jax.jit(lambda key, scenes: maker.text(encoder, key, scenes))(speak, pool.scenes)
        parts = []
        for i, key in enumerate(keys):
            rows = slice(i * recipe.encode, (i + 1) * recipe.encode)
            latents = rollout(
                dit, text[rows], key, chunks=recipe.own_chunks, grid=(height, width),
                strategy=strategy, trim=TokenTrim.off(),
            ).latents  # fmt: skip
            scenes = jax.tree.map(lambda x, rows=rows: x[rows], pool.scenes)
            sizes = chunks, recipe.own_pasts
            parts.append(_continue(graph, *sizes, state, scenes, latents.astype(jnp.float32), key))
        past, target = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        often = jax.tree.map(lambda x: jnp.repeat(x, recipe.own_pasts, axis=0), pool)
        return often._replace(past=past, target=target)

    return make


@partial(jax.jit, static_argnums=(0, 1, 2))
def _continue(
    graph: nnx.GraphDef,
    chunks: int,
    pasts: int,
    state: Any,
    scenes: Scenes,
    latents: Float[Array, "b f h w c"],
    key: Key[Array, ""],
) -> tuple[Array, Array]:
    """Some chunks of each rollout, and what should come in place of all but their first, float16.

    A third begins with the video.
    """
    vae, chunk = nnx.merge(graph, state), 3
    each = vae.config.temporal_stride * chunk  # frames
    where, early = jax.random.split(key)
    last = latents.shape[1] // chunk - chunks
    first = jax.random.randint(where, (len(latents), pasts), 0, last + 1)
    first = jnp.where(jax.random.uniform(early, first.shape) < 1 / 3, 0, first)

    def one(sample: tuple[Scenes, Array, Array]) -> tuple[Array, Array]:
        scene, latents, firsts = sample
        frames = (vae.decode(latents[None])[0] + 1) * 127.5

        def after(first: Array) -> tuple[Array, Array]:
            past = jax.lax.dynamic_slice_in_dim(latents, chunk * first, chunk * chunks)
            # A video's first latent frame is one frame.
            start = each * (first + 1 + jnp.arange(chunks - 1)) - vae.config.temporal_stride + 1
            seen = jax.vmap(lambda t: jax.lax.dynamic_slice_in_dim(frames, t - SEEN, SEEN))(start)
            many = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (chunks - 1, *x.shape)), scene)
            goes, begin = go_on(many, seen, start)
            shown = render(goes, each, begin).astype(jnp.float32)
            video = jnp.concatenate([seen, shown], axis=1)
            target = vae.encode(video / 127.5 - 1)[:, -chunk:]
            target = target.reshape(chunk * (chunks - 1), *target.shape[2:])
            return past, jnp.concatenate([past[:chunk], target])

        return jax.lax.map(after, firsts)

    both = jax.lax.map(one, (scenes, latents, first))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]).astype(jnp.float16), both)
