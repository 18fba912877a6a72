"""Noise that knows where things will be: a coupling of noise and data for the first chunk.

Of a video's first chunk a caption leaves much open: where the objects are, how large exactly. From
noise alone the best prediction is a blur of all possible answers, and a small object in it is next
to nothing; four steps, each with fresh noise, don't bring it back. But flow matching allows any
coupling of noise and data (Pooladian et al., 2023, arXiv 2304.14772). This one lets the noise
decide: an object stands at the token whose noise is greatest in a channel of its own, or where its
motion has room next to that; two more channels there say where in the token, another how large.
The noise stays as normal as it was: of independent values two are swapped, or one is set to the
quantile of something uniform.
"""

from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from tt_jax.shapes.world import SIDE, SIZES, Scene, reach


def couple(
    rng: np.random.Generator, noise: Float[np.ndarray, "f h w c"], scene: Scene, patch: int
) -> Float[np.ndarray, "f h w c"]:
    """The noise of a scene's first chunk, coupled with it: a changed copy. It needs 8 channels."""
    noise = noise.copy()
    count = noise.shape[1] // patch
    side = SIDE / count  # pixels of a token
    blocks = noise[0].reshape(count, patch, count, patch, -1).swapaxes(1, 2)
    for index, thing in enumerate(scene.objects):
        # Along each axis (y, x): its token, and one of those from which it is the nearest.
        at, token = [], []
        for start, *ends in zip(
            (thing.y, thing.x),
            *(np.flip(end) for end in reach(thing.radius, thing.direction, thing.speed)),
            strict=True,
        ):
            here, first, last = (min(int(x // side), count - 1) for x in (start, *ends))
            low = 0 if here <= first else here
            high = count - 1 if here >= last else here
            token.append(rng.integers(low, high + 1))
            at.append(start / side - here)
        # The sum of a token's values over the square root of their number is standard normal.
        sums = blocks[..., index].sum(axis=(2, 3))
        best = np.unravel_index(sums.argmax(), sums.shape)
        own, other = blocks[*token, :, :, index], blocks[*best, :, :, index]
        own[:], other[:] = other.copy(), own.copy()

        small, great = SIZES[thing.size]
        shares = (*at, (thing.radius - small) / (great - small))
        for channel, share in zip((2 + index, 4 + index, 6 + index), shares, strict=True):
            block = blocks[*token, :, :, channel]
            wanted = NormalDist().inv_cdf(float(np.clip(share, 0.01, 0.99)))
            block += (wanted - block.sum() / patch) / patch
    return noise
