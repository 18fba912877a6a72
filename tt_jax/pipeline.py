"""From a prompt to a video: `load` a model, then generate, stream, or continue a video."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, DTypeLike, Float, Key

from tt_jax._rollout import Strategy, check_request
from tt_jax._rollout import stream as stream_latents
from tt_jax.checkpoint import (
    PARTS,
    VAES,
    default_dtype,
    find,
    inside,
    load_part,
    load_tokenizer,
    read_config,
    read_stored,
)
from tt_jax.errors import ModelError, NonFiniteError
from tt_jax.frames import Decoder, ahead, check_size, encode, frame_count, scale
from tt_jax.models.configs import FPS, ModelConfig
from tt_jax.models.dit import DiT
from tt_jax.models.text import TextEncoder
from tt_jax.models.tiny_vae import Memory, TinyVAE
from tt_jax.models.tokenizer import Tokenizer
from tt_jax.models.vae import VAE
from tt_jax.overview import Observer, Overview
from tt_jax.prompts import check_prompts, encode_text
from tt_jax.scenes import Change, place_changes, read_script
from tt_jax.sharding import sharding, shared
from tt_jax.strategies.presets import own
from tt_jax.strategies.state import random_keys
from tt_jax.strategies.switch import Switch
from tt_jax.trim.tokentrim import TokenTrim
from tt_jax.video import Chunk, Video, VideoState, sample_paths

T = TypeVar("T")
Prompt = str | Sequence[str] | Float[Array | np.ndarray, "b l e"]
# Prompts by the second at which each begins; `Change` has what else can be said.
Script = Sequence[Change | tuple[float, Prompt] | tuple[float, Prompt, str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A text-to-video model.

    Attributes:
        dit: the transformer.
        vae: full or tiny; None if the model's folder has none: `rollout` makes latents then, but
            nothing a video.
        text: the text encoder; None if it was loaded without: prompts are embeddings then, see
            `encode_prompts`.
        tokenizer: None where there is none and no text encoder.
        config: sizes; of parts that the folder lacks, Wan's.
        kind: what the transformer was trained to do, one of `checkpoint.KINDS`.
    """

    dit: DiT
    vae: VAE | TinyVAE | None
    text: TextEncoder | None
    tokenizer: Tokenizer | None
    config: ModelConfig
    kind: str

    def __repr__(self) -> str:
        (height, width), sizes = self.config.size, self.config.dit
        others = (", VAE", self.vae), (", text encoder", self.text)
        return (
            f"Pipeline({self.kind} of {width}x{height}; transformer of {sizes.layers} layers "
            f"{sizes.dim} wide{''.join(name for name, part in others if part is not None)})"
        )

    def strategy(self, **settings: Any) -> Strategy:
        """The strategy as the model was trained for it (`config.rollout`), but for some settings.

        Args:
            settings: of `SelfForcing`, or of `RollingForcing` if that is the model's. A window or
                sink takes the place of the model's cache policy, and a cache policy theirs.

        Returns:
            The strategy, `SelfForcing` or `RollingForcing`.

        Raises:
            ValueError: nobody says of the model what isn't given either, or the settings can't be.
        """
        return own(self.config.rollout, **settings)

    def _check_vae(self) -> None:
        if self.vae is None:
            raise ValueError(
                "the model has no VAE, so there are latents only: tt_jax.rollout(pipe.dit, ...)."
            )

    def encode_prompt(self, prompts: str | Sequence[str]) -> Float[Array, "b l e"]:
        """Encodes prompts; warns when one is too long.

        Args:
            prompts: one or several.

        Returns:
            Embeddings `[B, text_len, text_dim]`, zero rows after each prompt's end.

        Raises:
            ValueError: a prompt is empty, or the text encoder isn't loaded.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        check_prompts(prompts)
        if self.text is None or self.tokenizer is None:
            raise ValueError("the text encoder isn't loaded: give what encode_prompts returns.")
        ids, mask = self.tokenizer(prompts)
        return encode_text(*nnx.split(self.text), ids, mask)

    def encode_video(
        self, frames: np.ndarray, batch: int, size: tuple[int, int]
    ) -> Float[Array, "b t h w c"]:
        """Encodes frames to start from.

        Args:
            frames: `[T, H, W, 3]` for all samples or `[B, T, H, W, 3]`; uint8, or float in [0, 1].
                Of frames that don't fill a latent frame the first ones are left out.
            batch: number of videos that start from them.
            size: their height and width.

        Returns:
            Latents of each video, float32.

        Raises:
            ValueError: the frames have another shape or range, or there is no VAE.
        """
        self._check_vae()
        frames = np.asarray(frames)
        frames = frames[None] if frames.ndim == 4 else frames
        scaled = scale(frames, batch, size)
        surplus = (frames.shape[1] - 1) % self.config.vae.temporal_stride
        latents = encode(*nnx.split(self.vae), scaled[:, surplus:])
        return jnp.repeat(latents, batch // len(frames), axis=0)

    @overload
    def generate(self, prompt: Prompt | Script, *, out: None = None, **request: Any) -> Video: ...
    @overload
    def generate(self, prompt: Prompt | Script, *, out: Path | str, **request: Any) -> Overview: ...
    def generate(  # pyright: ignore[reportInconsistentOverload]
        self,
        prompt: Prompt | Script,
        *,
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        trim: TokenTrim | None = None,
        strategy: Strategy | None = None,
        size: tuple[int, int] | None = None,
        initial: np.ndarray | None = None,
        state: VideoState | None = None,
        progress: Callable[[Chunk], None] | None = None,
        out: Path | str | None = None,
    ) -> Video | Overview:
        """Makes a video of exactly `round(16 * seconds)` frames: what `stream` yields, joined.

        Args:
            prompt: as in `stream`, and so are the others.
            seconds: of the whole video, which a script's scenes may say.
            seed: of all noise.
            trim: TokenTrim's settings.
            strategy: how chunks are made.
            size: height and width in pixels.
            initial: frames to start from.
            state: a video to continue.
            progress: called with every `Chunk` as soon as it is there.
            out: the mp4 to write, of several samples as in `video.sample_paths`: frames and latents
                go there chunk by chunk, and aren't kept in memory. After an error or an interrupt
                what was finished is `NAME.partial.mp4`.

        Returns:
            The video; with `out`, what an `Overview` has of it.

        Raises:
            ValueError: the request can't be.
            NonFiniteError: a chunk's latents aren't finite.
            OSError: the file can't be written.
        """
        chunks = self.stream(
            prompt, seconds=seconds, seed=seed, trim=trim, strategy=strategy, size=size,
            initial=initial, state=state,
        )  # fmt: skip
        if out is None:
            return Video.collect(chunks, progress)
        seconds = read_script(prompt)[1] if seconds is None else seconds
        assert seconds is not None  # `stream` asks for it
        return _write(chunks, Path(out), frame_count(seconds), progress)

    def stream(
        self,
        prompt: Prompt | Script,
        *,
        seconds: float | None = None,
        seed: int | Sequence[int] | None = None,
        trim: TokenTrim | None = None,
        strategy: Strategy | None = None,
        size: tuple[int, int] | None = None,
        initial: np.ndarray | None = None,
        state: VideoState | None = None,
        resume: VideoState | None = None,
    ) -> Iterator[Chunk]:
        """Makes a video chunk by chunk; the same as one `rollout` over all of them.

        The device works on the next chunk while a chunk's frames are fetched and looked at. For
        that it holds two states of the rollout, and a third one as long as the chunk before is
        kept: let go of a chunk before asking for the next one where memory is short.

        Args:
            prompt: one, several (a batch), or embeddings from `encode_prompt`. Or a script: scenes
                in one text, `"a cat [10s] | a dog [5s#]"` (`scenes.parse_scenes`), or a prompt by
                each second at which one begins, `[(0, "a cat"), (10, "a dog")]`, with how the cache
                is switched as a third value (`strategies.switch.switches`; the cache policy's own
                way if left out). Prompts change between chunks, at the border nearest to the time.
            seconds: of the whole stream, initial frames included; exactly `round(16 * seconds)`
                frames. Only scenes that all have a length can do without.
            seed: of all noise, 0 to 2**64 - 1; 0 if not given. Or one for each sample, which is
                then what it would be alone, whatever else is in its batch. With a state: not given,
                the video goes on as if it hadn't stopped; given, it branches off from there.
            trim: `TokenTrim()` if not given.
            strategy: `self.strategy()` if not given.
            size: height and width in pixels, the model's own if not given.
            initial: frames to start from, see `encode_video`; they come first.
            state: `Video.state` or `Chunk.state`, to continue that video by `seconds`, with the
                same batch, strategy and trim (but for `lam`), anything else is refused; its size is
                the state's.
            resume: `Chunk.state` of this very stream, which was interrupted: the chunks after that
                one, the same as they would have been. Not of the last `1 + strategy.lag` chunks.

        Yields:
            Each chunk as soon as it is accepted.

        Raises:
            ValueError: the request can't be; at once, not at the first chunk.
            NonFiniteError: a chunk's latents aren't finite.
        """
        self._check_vae()
        script, length = read_script(prompt)
        seconds = length if seconds is None else seconds
        if seconds is None:
            raise ValueError("the video has no length: give seconds.")
        texts = [self._text(change.prompt) for change in script]
        text = texts[0]
        strategy = self.strategy() if strategy is None else strategy
        if state is not None and resume is not None:
            raise ValueError("state continues a video, resume makes the rest of one: give either.")
        before = state if resume is None else resume
        if before and isinstance(before.cache, Memory) != isinstance(self.vae, TinyVAE):
            raise ValueError("the video was decoded by another VAE: continue it with that one.")
        if state is None and seed is None:
            seed = 0
        key = None if seed is None else random_keys(seed)
        frames = frame_count(seconds)
        if state is not None:
            if initial is not None or size is not None:
                raise ValueError("a continued video has its size and start: give neither.")
            size = state.surplus.shape[2:4]
        size = self.config.size if size is None else size
        check_size(self.config, size)
        latents = None if initial is None else self.encode_video(initial, len(text), size)
        given = 0 if latents is None else latents.shape[1]
        stride = self.config.vae.temporal_stride
        if state is None:
            missing = 1 + -(-(frames - 1) // stride) - given
        else:
            missing = max(1, -(-(frames - state.surplus.shape[1]) // stride))
        if missing < 1:
            raise ValueError(
                f"the {1 + stride * (given - 1)} initial frames leave nothing to generate of "
                f"{frames}: ask for more seconds."
            )
        trim = TokenTrim() if trim is None else trim
        chunks = -(-missing // strategy.chunk)
        if chunks <= strategy.lag:
            least = strategy.lag * strategy.chunk + 1  # latent frames
            if state is None:
                least = 2 + stride * (least + given - 2)
            else:
                least = 1 + stride * (least - 1) + state.surplus.shape[1]
            raise ValueError(
                f"{type(strategy).__name__} works on {strategy.lag + 1} chunks at once: it makes "
                f"at least {least / FPS:g} seconds here, not {seconds:g}."
            )
        again, inner = (0, None) if state is None else (strategy.lag, state.rollout)
        side = self.config.vae.spatial_stride
        grid = (size[0] // side, size[1] // side)
        check_request(
            self.dit, text, key, grid, strategy, trim, chunks - again, latents, None, inner
        )
        # The frames at which chunks begin; a video's very first latent frame is one frame.
        ahead = stride * (given - 1) + 1 if state is None else state.surplus.shape[1]
        starts = [max(0, ahead + stride * strategy.chunk * chunk) for chunk in range(chunks)]
        borders = [frame / FPS for frame in (*starts, frames)]
        changes = place_changes(script, texts, strategy, borders, continued=state is not None)
        done = 0
        if resume is not None:
            done = int(resume.rollout.chunk) - strategy.lag
            left = chunks - done - strategy.lag
            if done < 1 or left < 1:
                raise ValueError(
                    "the state is of another video, or of one of this one's last chunks."
                )
            key, latents, state = None, None, resume
            check_request(
                self.dit, text, key, grid, strategy, trim, left, None, None, state.rollout
            )
        return self._stream(
            text, frames, chunks, key, strategy, trim, size, latents, state, done,
            starts[done] if done else 0, changes,
        )  # fmt: skip

    def _text(self, prompt: Prompt) -> Float[Array, "b l e"]:
        """Embeddings of what may be some already."""
        encoded = isinstance(prompt, jax.Array | np.ndarray)
        return jnp.asarray(prompt) if encoded else self.encode_prompt(prompt)

    def _stream(
        self,
        text: Float[Array | np.ndarray, "b l e"],
        frames: int,
        chunks: int,
        key: Key[Array, "*keys"] | None,
        strategy: Strategy,
        trim: TokenTrim,
        size: tuple[int, int],
        initial: Float[Array | np.ndarray, "b t h w c"] | None,
        state: VideoState | None,
        done: int,
        shown: int,
        changes: Mapping[int, tuple[Change, Float[Array, "b l e"]]],
    ) -> Iterator[Chunk]:
        """The chunks from `done` on; before them came `shown` frames."""
        side = self.config.vae.spatial_stride
        grid = (size[0] // side, size[1] // side)
        inner, cache = (None, None) if state is None else shared((state.rollout, state.cache))
        surplus = np.zeros((len(text), 0, *size, 3), np.uint8) if state is None else state.surplus
        again = 0 if state is None else strategy.lag
        number = 0 if state is None else int(state.rollout.chunk) - again
        # Of a resumed stream, the chunks that were begun: their prompts are behind it.
        begun = done + again if done else 0
        for place in sorted(changes):
            if place < begun:
                text = changes[place][1]
        script = {
            place - begun: Switch(text, change.how)
            for place, (change, text) in changes.items()
            if place >= begun
        }
        latent = stream_latents(
            self.dit, text, key, chunks=chunks - done - again, grid=grid, strategy=strategy,
            trim=trim, initial=initial, state=inner, script=script,
        )  # fmt: skip
        kept = cache, surplus
        assert self.vae is not None  # `stream` asks for it
        made = ahead(map(Decoder(self.vae, cache, initial), latent))
        del state, inner  # a state is held by nobody but whoever was given it, and the next one's
        for index in range(done, chunks):
            out, finite, parts, cache = next(made)
            if not finite:
                raise NonFiniteError(number)
            ready = np.concatenate([surplus, *parts], axis=1)
            new = ready.shape[1] - surplus.shape[1]
            own = min(new, strategy.chunk * self.config.vae.temporal_stride)
            start = shown + ready.shape[1] - own
            take = frames - shown if index == chunks - 1 else ready.shape[1]
            surplus = ready[:, take:]
            if index < chunks - strategy.lag:  # what comes after is made again
                kept = cache, surplus
            change, _ = changes.get(index, (None, None))
            state = VideoState(out.state, *kept)
            chunk = Chunk(number, start, chunks, ready[:, :take], out, state, change)
            del out, parts, ready, state
            yield chunk
            del chunk
            shown, number = shown + take, number + 1


def _write(
    chunks: Iterator[Chunk],
    path: Path,
    length: int,
    progress: Callable[[Chunk], None] | None,
) -> Overview:
    """Writes a stream's frames, and keeps an overview."""
    from tt_jax.media.write import growing  # here: importing tt_jax stays light

    first = next(chunks)
    paths = sample_paths(path, len(first.frames))
    observer, state = Observer(length), first.state
    with growing(paths) as add:
        for chunk in chain([first], chunks):
            if progress is not None:
                progress(chunk)
            observer.add(chunk)
            add(chunk.frames)
            state = chunk.state
    return observer.overview(state, paths)


def load(
    model: str | Path,
    dtype: DTypeLike | None = None,
    *,
    allow_bidirectional: bool = False,
    mesh: Mesh | None = None,
    text: bool = True,
    vae: str = "full",
    quantize: str | None = None,
) -> Pipeline:
    """Loads a model.

    Args:
        model: "shapes", which is embedded, or the folder of a converted checkpoint.
        dtype: of all weights; float32 on a CPU and bfloat16 on a GPU or TPU if not given.
        allow_bidirectional: load a model that wasn't trained to generate chunk by chunk too.
        mesh: of devices that the weights are sharded over (`sharding.make_mesh`); call what needs
            the pipeline under `with jax.set_mesh(mesh)` then.
        text: load the text encoder too; without it prompts are embeddings (`encode_prompts`), and
            the folder needs no more than a transformer.
        vae: "full", or "tiny": the tiny autoencoder decodes, many times faster and less exactly.
        quantize: "int8": linear layers of 8 bits in the text encoder and in all blocks of the
            transformer but the first and the last. Of a folder that was saved so, they are anyway.

    Returns:
        The model and its `config`, ready to generate.

    Raises:
        ModelError: there is no such model, it lacks a part, or it is bidirectional.
    """
    folder = find(model)
    config, kind = read_config(folder, PARTS if text else ("dit",), vae, quantize)
    if kind == "bidirectional" and not allow_bidirectional:
        raise ModelError(
            f"{folder} is a bidirectional model, which generates garbage chunk by chunk: take a "
            "causal generator (Self Forcing, Rolling Forcing, CausVid, LongLive), or go on with "
            "--allow-bidirectional (allow_bidirectional=True)."
        )
    if kind == "unknown":
        warnings.warn(
            f"nobody said whether {folder} was trained to generate chunk by chunk, and other "
            "models give garbage: convert it with --kind to say it.",
            stacklevel=2,
        )
    tokenizer = None
    if text or inside(folder, "tokenizer.model").exists():
        tokenizer = load_tokenizer(folder, config.text.text_len)
    dtype = default_dtype() if dtype is None else dtype
    places = None if mesh is None else sharding(mesh)
    if config.rollout.lacks is not None:
        warnings.warn(
            f"the model was trained with {config.rollout.lacks}, which isn't here: without it its "
            "videos are worse.",
            stacklevel=2,
        )
    parts: dict[str, Any] = dict.fromkeys(PARTS)
    stored = read_stored(folder).parts
    wanted = {"dit": "dit", "vae": VAES[vae], **({"text": "text"} if text else {})}
    for part, held in wanted.items():
        if held in stored:
            parts[part] = load_part(folder, held, getattr(config, part), dtype, places)
    return Pipeline(**parts, tokenizer=tokenizer, config=config, kind=kind)
