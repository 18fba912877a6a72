"""A cell's videos, with what TokenTrim did in them."""

import dataclasses
import itertools
import time
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, UInt8

from tt_jax import cache
from tt_jax._rollout import Strategy
from tt_jax.frames import frame_count
from tt_jax.lab.cost import Cost, chunk_cost
from tt_jax.lab.spec import WORLD_PROMPTS, Cell, Plant
from tt_jax.lab.stress import corrupt, planted_tokens
from tt_jax.models.configs import FPS, ModelConfig
from tt_jax.pipeline import Pipeline
from tt_jax.shapes.world import SIDE
from tt_jax.strategies.presets import preset
from tt_jax.strategies.rolling_forcing import RollingForcing
from tt_jax.strategies.self_forcing import SelfForcing
from tt_jax.video import Chunk, Video

RECORD = ("severity", "accepted_severity", "threshold", "triggered", "kept_fraction")


@dataclasses.dataclass(frozen=True)
class Planted:
    """A corruption that was planted.

    Attributes:
        tokens: of a frame, those that were replaced.
        chunk: the first one made with it.
        chunks: how many can have been, before the memory forgets it anyway.
    """

    tokens: Bool[np.ndarray, " tokens"]
    chunk: int
    chunks: int


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A cell's videos.

    Attributes:
        frames: of every video.
        record: the numbers in `RECORD`, and `dropped`: whether a token was dropped in any cached
            frame.
        starts: the frame at which each chunk begins.
        grid: rows and columns of the tokens.
        planted: the corruption, if there was one.
        seconds: of wall time, without compiling and without measuring.
        cost: of a chunk of one video, if it was counted.
    """

    frames: UInt8[np.ndarray, "b t h w 3"]
    record: dict[str, Float[np.ndarray, "b chunks"] | Bool[np.ndarray, "b chunks tokens"]]
    starts: tuple[int, ...]
    grid: tuple[int, int]
    planted: Planted | None
    seconds: float
    cost: Cost | None = None


def strategy(cell: Cell, config: ModelConfig) -> Strategy:
    """The cell's host.

    Args:
        cell: what is made.
        config: of its model, whose window it is unless the stress has another or the arm a cache.

    Returns:
        The strategy.

    Raises:
        ValueError: the window can't be, or the cache.
    """
    host = preset(cell.host, config.rollout).strategy
    if cell.arm.cache is not None:
        if isinstance(host, RollingForcing):
            raise ValueError(
                f"arm {cell.arm.name!r} has a cache, and Rolling Forcing keeps its own context: "
                "give hosts of Self Forcing alone."
            )
        if cell.stress.window is not None or cell.stress.plant is not None:
            raise ValueError(
                f"stress {cell.stress.name!r} needs the model's own window, and arm "
                f"{cell.arm.name!r} has a cache."
            )
        policy = cache.parse(cell.arm.cache, config.rollout.window)
        return preset(cell.host, config.rollout, cache=policy).strategy
    if cell.stress.window is None:
        return host
    if isinstance(host, RollingForcing):
        raise ValueError(
            f"stress {cell.stress.name!r} sets a window, and Rolling Forcing has one of its own."
        )
    return preset(cell.host, config.rollout, window=cell.stress.window).strategy


def token_grid(config: ModelConfig) -> tuple[int, int]:
    """Rows and columns of a frame's tokens."""
    unit = config.vae.spatial_stride * config.dit.patch
    return config.size[0] // unit, config.size[1] // unit


def check(cell: Cell, config: ModelConfig) -> None:
    """Whether a cell can be made and judged.

    Args:
        cell: what is made.
        config: of its model.

    Raises:
        ValueError: the model can't make these videos, or nobody judge them; in one sentence.
    """
    name = cell.stress.model
    if any(prompt.regime for prompt in cell.prompts) and config.size != (SIDE, SIDE):
        raise ValueError(
            f"{name!r} makes videos of {config.size[1]}x{config.size[0]}, but the embedded world's "
            f"prompts are judged in {SIDE}x{SIDE}: give prompts of your own."
        )
    host = strategy(cell, config)
    host.check(chunk_count(cell, config), cell.arm.trim, 0)
    if plant := cell.stress.plant:
        planted_tokens(plant, token_grid(config))
        # Behind the chunk that ends at or after the second, what is left is a rollout too.
        ends = _ends(cell, config)
        after = sum(end >= frame_count(plant.second) for end in ends) - 1
        if after < 1:
            raise ValueError(
                f"stress {cell.stress.name!r} plants at {plant.second:g} seconds, where a video of "
                f"{cell.seconds:g} ends."
            )
        host.check(after, cell.arm.trim, 0)


def chunk_count(cell: Cell, config: ModelConfig) -> int:
    """Chunks of each of the cell's videos.

    Args:
        cell: what is to be made.
        config: its model's.

    Returns:
        How many.
    """
    return len(_ends(cell, config))


def _ends(cell: Cell, config: ModelConfig) -> list[int]:
    """The frame at which each chunk ends, the last one not cut: a latent frame is `stride` frames,
    but for the first, which is one."""
    frames, stride = frame_count(cell.seconds), config.vae.temporal_stride
    step = strategy(cell, config).chunk * stride
    chunks = -(-(frames - 1 + stride) // step)
    return [(index + 1) * step - stride + 1 for index in range(chunks)]


def plant_chunk(cell: Cell, plant: Plant, config: ModelConfig) -> int:
    """The first chunk that the cell's stress has made with a corrupted memory.

    Args:
        cell: whose videos.
        plant: what is corrupted, and when.
        config: its model's.

    Returns:
        Its number, from 0.
    """
    frame = frame_count(plant.second)
    return 1 + next(i for i, end in enumerate(_ends(cell, config)) if end >= frame)


def make(cell: Cell, pipe: Pipeline) -> Made:
    """Generates a cell's videos.

    Args:
        cell: what is made.
        pipe: its model.

    Returns:
        The videos with their records.

    Raises:
        NonFiniteError: a chunk isn't finite.
    """
    waits: list[float] = []
    started = time.perf_counter()

    def watch(chunk: Chunk) -> None:
        waits.append(time.perf_counter() - started - sum(waits))

    video = Video.collect(chunks(cell, pipe), watch)
    numbers = video.rollout.numbers()
    record = {name: numbers[name] for name in RECORD}
    pruned = numbers["pruned"]
    record["dropped"] = (pruned > 0).reshape(*pruned.shape[:2], -1)
    # The first chunk's time is mostly that of compiling; it counts as an average one.
    seconds = sum(waits[1:]) * len(waits) / max(len(waits) - 1, 1)
    place = planted(cell, pipe.config)
    grid = token_grid(pipe.config)
    cost = chunk_cost(strategy(cell, pipe.config), pipe.config, pipe.dit.head.kernel.dtype)
    return Made(video.frames, record, video.starts, grid, place, seconds, cost)


def planted(cell: Cell, config: ModelConfig) -> Planted | None:
    """Where and when the cell's stress plants a corruption, if it does.

    Args:
        cell: whose videos.
        config: its model's.

    Returns:
        Tokens and chunks of the corruption; None if the cell's stress plants none.
    """
    plant = cell.stress.plant
    if plant is None:
        return None
    host, grid = strategy(cell, config), token_grid(config)
    tokens = np.zeros(grid[0] * grid[1], bool)
    tokens[planted_tokens(plant, grid)] = True
    # Rolling Forcing keeps one chunk for good, its anchor.
    sink = host.policy.sinks if isinstance(host, SelfForcing) else host.chunk
    kept = (host.slots - sink) // host.chunk
    return Planted(tokens, plant_chunk(cell, plant, config), kept)


def chunks(cell: Cell, pipe: Pipeline) -> Iterator[Chunk]:
    """The chunks of a cell's videos.

    Noise depends on the seed and on the place in the study, so that arms are matched.

    Args:
        cell: what is to be made.
        pipe: its model.

    Yields:
        Each chunk as soon as it is made.
    """
    host = strategy(cell, pipe.config)
    request = {"trim": cell.arm.trim, "strategy": host}
    text = pipe.encode_prompt([prompt.text for prompt in cell.prompts])
    seed = WORLD_PROMPTS * cell.seed + cell.first
    stream = pipe.stream(text, seconds=cell.seconds, seed=seed, **request)
    plant = cell.stress.plant
    if plant is None:
        yield from stream
        return
    shown, state = 0, None
    for chunk in itertools.islice(stream, plant_chunk(cell, plant, pipe.config)):
        yield chunk
        shown += chunk.frames.shape[1]
        state = chunk.state
    assert state is not None  # there is a chunk before the first that can be corrupted
    inner = corrupt(state.rollout, plant, token_grid(pipe.config), host.chunk)
    state = dataclasses.replace(state, rollout=inner)
    rest = (frame_count(cell.seconds) - shown) / FPS
    for chunk in pipe.stream(text, seconds=rest, state=state, **request):
        yield dataclasses.replace(chunk, start=chunk.start + shown)
