import dataclasses
import json
import math
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import PROMPT, TINY

import tt_jax
from tt_jax import cache, frames, pipeline, records, verify
from tt_jax.errors import ModelError, NonFiniteError
from tt_jax.plots import drift, style
from tt_jax.scenes import Change, place_changes

# Every chunk from the fourth on triggers.
EAGER = tt_jax.TokenTrim(p=0.2, lam=-100.0)
OTHER_SIZE = (16, 48)  # tests that share a size, batch and policy share compiled programs


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return tt_jax.load(tiny_model)


@pytest.fixture(scope="module")
def video(pipe):
    return pipe.generate(PROMPT, seconds=4, seed=3, trim=EAGER)


def close(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-6 * np.linalg.norm(b)


# --- load ---------------------------------------------------------------------------------------


def test_load(pipe):
    assert pipe.kind == "causal generator"
    assert pipe.config == TINY
    assert pipe.strategy() == tt_jax.SelfForcing(window=TINY.rollout.window)
    for part in (pipe.dit.head, pipe.vae.from_latents, pipe.text.blocks.q):
        assert part.kernel.dtype == jnp.float32


def test_load_casts_all_parts(tiny_model):
    pipe = tt_jax.load(tiny_model, jnp.bfloat16)
    for part in (pipe.dit.head, pipe.vae.from_latents, pipe.text.blocks.q):
        assert part.kernel.dtype == jnp.bfloat16


def test_unknown_model_names_the_embedded_ones():
    with pytest.raises(ModelError, match=r"no model 'shape'.*'shapes'"):
        tt_jax.load("shape")


def test_bidirectional_models_are_refused_unless_allowed(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "wan")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"kind": "bidirectional"}))
    with pytest.raises(ModelError, match="Self Forcing"):
        tt_jax.load(folder)
    assert tt_jax.load(folder, allow_bidirectional=True).kind == "bidirectional"


def test_models_of_an_unknown_kind_are_named(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "found")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"kind": "unknown"}))
    with pytest.warns(UserWarning, match=r"found.*chunk by chunk.*--kind"):
        tt_jax.load(folder)


@pytest.mark.slow
def test_a_model_takes_what_it_lacks_from_the_folder_it_shares(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "whole")
    (tmp_path / "sibling").mkdir()
    shutil.move(tmp_path / "whole" / "dit", tmp_path / "sibling" / "dit")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    stored = json.dumps(config | {"shared": "../whole"})
    (tmp_path / "sibling" / "config.json").write_text(stored)
    texts = [
        tt_jax.load(folder).encode_prompt("a red circle")
        for folder in (tmp_path / "sibling", tiny_model)
    ]
    np.testing.assert_array_equal(*texts)
    rows = [list(verify.verify(folder)) for folder in (tmp_path / "sibling", tiny_model)]
    assert rows[0] == rows[1]
    with pytest.raises(ModelError, match="holds no 'dit'"):
        tt_jax.load(tmp_path / "whole")


def test_a_folder_without_tokenizer_is_refused(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.model"):
        tt_jax.load(folder)


def test_importing_stays_light():
    code = "import sys, tt_jax; print(*{'matplotlib', 'imageio', 'PIL', 'av'} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


# --- generate and stream ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "chunks"), [(1 / 16, 1), (0.5, 1), (9 / 16, 1), (10 / 16, 2), (1.3, 2), (1.4, 3)]
)
def test_exact_frames(pipe, seconds, chunks):
    parts = list(pipe.stream(PROMPT, seconds=seconds, trim=EAGER))
    assert [part.total for part in parts] == [chunks] * chunks
    assert sum(part.frames.shape[1] for part in parts) == round(16 * seconds)


def test_thirty_seconds_are_41_chunks_and_480_frames(pipe, monkeypatch):
    planned = {}

    def stream(self, text, frames, chunks, *_):
        planned.update(frames=frames, chunks=chunks)
        return iter(())

    monkeypatch.setattr(pipeline.Pipeline, "_stream", stream)
    pipe.stream(PROMPT, seconds=30)
    assert planned == {"frames": 480, "chunks": 41}


def test_a_script_of_prompts(pipe, video):
    """Switched at the nearest borders as the library's stream does, said in the record, continued,
    and compiled once."""
    module = sys.modules["tt_jax._rollout"]
    before = module._rollout._cache_size(), frames.decode._cache_size()
    square, star = "a large blue square", "a green star"
    request = {"seed": 3, "trim": EAGER}
    made = pipe.generate([(0, PROMPT), (1.2, square), (2.1, star, "none")], seconds=2.8, **request)
    assert records.switches(made, 0) == [
        {"chunk": 3, "start": 21 / 16, "prompt": square, "how": "none"},
        {"chunk": 4, "start": 33 / 16, "prompt": star, "how": "none"},
    ]
    np.testing.assert_array_equal(made.frames[:, :21], video.frames[:, :21])
    texts = [pipe.encode_prompt(prompt) for prompt in (PROMPT, square, star)]
    wanted = tt_jax.stream(
        pipe.dit, texts[0], jax.random.key(3), chunks=4, grid=(8, 8), strategy=pipe.strategy(),
        trim=EAGER, script={2: tt_jax.Switch(texts[1]), 3: tt_jax.Switch(texts[2])},
    )  # fmt: skip
    latents = np.concatenate([part.latents for part in wanted], 1)
    np.testing.assert_array_equal(made.rollout.latents, latents)
    # The same in one line, in which the last scene's length is the video's; stopped at a switch.
    line = f"{PROMPT} [1.2s] | {square} [.9s] | {star} [.7s]"
    assert pipe.generate(line, **request).frames.tobytes() == made.frames.tobytes()
    *_, stopped = pipe.stream([(0, PROMPT), (1.2, square)], seconds=33 / 16, **request)
    more = pipe.generate([(0, star, "none")], seconds=12 / 16, state=stopped.state, trim=EAGER)
    np.testing.assert_array_equal(more.frames, made.frames[:, 33:])
    (row,) = records.switches(more, 0)
    assert (row["chunk"], row["prompt"]) == (1, star)
    assert (module._rollout._cache_size(), frames.decode._cache_size()) == before


def stopped():
    """A video's state of which only that there is one is looked at."""
    return object.__new__(tt_jax.VideoState)


def test_what_a_script_does_to_the_cache_is_the_policys_unless_it_says(pipe, monkeypatch):
    planned = []

    def stream(self, *args):
        planned.append(args[-1])
        return iter(())

    monkeypatch.setattr(pipeline.Pipeline, "_stream", stream)
    embedded = jnp.repeat(pipe.encode_prompt(PROMPT), 2, 0)
    script = [(0, embedded), (2, [PROMPT, "a star"]), (3, embedded, "none")]
    for policy in (cache.InfinityRope(9), cache.LongLive(9, 2)):
        pipe.stream(script, seconds=4, strategy=tt_jax.SelfForcing(cache=policy))
    for changes, how in zip(planned, ("flush", "recache"), strict=True):
        said = {chunk: (change.how, change.words) for chunk, (change, _) in changes.items()}
        assert said == {3: (how, (PROMPT, "a star")), 4: ("none", ())}
    # Rolling Forcing's text changes where a chunk enters its window; what it makes again, it can't.
    rolling = tt_jax.RollingForcing()
    pipe.stream([(0, PROMPT), (2, PROMPT)], seconds=4, strategy=rolling)
    assert {chunk: change.how for chunk, (change, _) in planned[-1].items()} == {3: "none"}
    changes, borders = (Change(0, PROMPT), Change(2, PROMPT)), [0, 1.5, 2.25, 4]
    with pytest.raises(
        ValueError, match=r"RollingForcing makes the last chunks .* give one prompt"
    ):
        place_changes(changes, [embedded] * 2, rolling, borders, continued=True)
    # Of a video that begins with given frames, chunks begin later.
    initial = np.zeros((17, 32, 32, 3), np.uint8)
    pipe.stream([(0, PROMPT), (2.6, PROMPT)], seconds=4, initial=initial)
    assert list(planned[-1]) == [2]  # at frame 17 + 24, 2.5625 s


@pytest.mark.parametrize(
    ("prompt", "how", "says"),
    [
        (PROMPT, {"seconds": None}, "has no length: give seconds"),
        ([(0, PROMPT), (1, " ")], {}, "the prompt is empty"),
        ([(0, PROMPT), (1, PROMPT, "flush")], {}, "has no switch 'flush': give one of none"),
        ([(0, PROMPT, "none")], {}, "first prompt has no cache to switch"),
        ([(0, PROMPT), (1, [PROMPT] * 2)], {}, "the prompt at 1 seconds must be"),
        ([(0, PROMPT), (1, PROMPT, "cut")], {"strategy": tt_jax.RollingForcing(), "seconds": 4},
         r"RollingForcing\(.* has no switch 'cut': give one of none"),
    ],
    ids=str,
)  # fmt: skip
def test_a_script_that_cannot_be(pipe, prompt, how, says):
    with pytest.raises(ValueError, match=says):
        pipe.stream(prompt, **{"seconds": 2.5} | how)


@pytest.mark.slow
def test_generate_is_the_rollout_decoded(pipe, video):
    """The stream's chunks, joined, against one scan and one decoding of the whole."""
    scan = tt_jax.rollout(
        pipe.dit, pipe.encode_prompt(PROMPT), jax.random.key(3), chunks=6, grid=(8, 8),
        strategy=pipe.strategy(), trim=EAGER,
    )  # fmt: skip
    assert video.frames.shape == (1, 64, 32, 32, 3) and video.frames.dtype == np.uint8
    assert video.fps == 16 and video.starts == (0, 9, 21, 33, 45, 57)
    assert close(video.rollout.latents, scan.latents)
    np.testing.assert_array_equal(video.rollout.triggered, scan.triggered)
    np.testing.assert_array_equal(video.rollout.pruned, scan.pruned)
    np.testing.assert_allclose(video.rollout.severity, scan.severity, rtol=1e-5)
    np.testing.assert_allclose(video.rollout.threshold, scan.threshold, rtol=1e-4)
    assert scan.triggered[0, 3:].all()
    decoded = (np.asarray(pipe.vae.decode(scan.latents)) + 1) * 127.5
    assert np.abs(decoded[:, :64] - video.frames).max() < 0.6
    assert video.frames.std() > 10, "a flat video would equal anything"


def test_stream_yields_what_generate_joins(pipe, video):
    seen = []
    parts = list(pipe.stream(PROMPT, seconds=4, seed=3, trim=EAGER))
    again = pipe.generate(PROMPT, seconds=4, seed=3, trim=EAGER, progress=seen.append)
    np.testing.assert_array_equal(np.concatenate([p.frames for p in parts], 1), video.frames)
    np.testing.assert_array_equal(again.frames, video.frames)
    assert [p.number for p in parts] == [chunk.number for chunk in seen] == list(range(6))
    assert [p.rollout.latents.shape for p in parts] == [(1, 3, 8, 8, 4)] * 6


def test_stream_compiles_once(pipe, video):
    module = sys.modules["tt_jax._rollout"]
    before = module._rollout._cache_size(), frames.decode._cache_size()
    list(pipe.stream(PROMPT, seconds=6, seed=9, trim=EAGER))
    assert (module._rollout._cache_size(), frames.decode._cache_size()) == before


@pytest.mark.slow
def test_samples_of_a_batch_differ_and_prompts_matter(pipe):
    both = pipe.generate([PROMPT, PROMPT], seconds=0.5, size=OTHER_SIZE, trim=EAGER)
    assert both.frames.shape == (2, 8, *OTHER_SIZE, 3)
    assert (both.frames[0] != both.frames[1]).any()
    other = "a large blue square standing still on navy stripes"
    mixed = pipe.generate([PROMPT, other], seconds=0.5, size=OTHER_SIZE, trim=EAGER)
    np.testing.assert_array_equal(both.frames[0], mixed.frames[0])
    assert (both.frames[1] != mixed.frames[1]).any()


def test_encoded_prompts_are_taken_as_they_are(pipe, video):
    text = pipe.encode_prompt(PROMPT)
    assert text.shape == (1, 40, 16)
    again = pipe.generate(text, seconds=4, seed=3, trim=EAGER)
    np.testing.assert_array_equal(again.frames, video.frames)


def test_continuing_equals_not_stopping(pipe, video):
    first = pipe.generate(PROMPT, seconds=1.5, seed=3, trim=EAGER)
    second = pipe.generate(PROMPT, seconds=2.5, trim=EAGER, state=first.state)
    with pytest.raises(ValueError, match=r"made with retries 1 and .* with retries 0"):
        pipe.stream(PROMPT, seconds=2.5, trim=tt_jax.TokenTrim(p=0.2, retries=0), state=first.state)
    assert first.frames.shape[1] == 24 and second.frames.shape[1] == 40
    # 33 frames were decoded, 9 of them are the continuation's first.
    assert first.state.surplus.shape[1] == second.starts[0] == 9
    joined = np.concatenate([first.frames, second.frames], axis=1)
    assert np.abs(joined.astype(int) - video.frames).max() <= 1


def test_what_is_printed_is_one_line(pipe, video):
    first = pipe.generate(PROMPT, seconds=1.5, seed=3, trim=EAGER)
    chunk = next(pipe.stream(PROMPT, seconds=4, seed=3, trim=EAGER))
    assert repr(video) == "Video(1 sample, 64 frames of 32x32, 4 s, 6 chunks)"
    assert repr(first.state) == "VideoState(1 sample of 32x32, 9 frames ahead)"
    assert repr(chunk) == "Chunk(number 0, 6 in all; 1 sample, 9 frames of 32x32)"
    parts = "transformer of 2 layers 48 wide"
    assert repr(pipe) == f"Pipeline(causal generator of 32x32; {parts}, VAE, text encoder)"
    alone = dataclasses.replace(pipe, vae=None, text=None)
    assert repr(alone) == f"Pipeline(causal generator of 32x32; {parts})"


@pytest.mark.slow
def test_continuing_by_less_than_is_there(pipe, video, tmp_path):
    """What is shown was decoded before; the chunk that had to be made lies behind it."""
    first = pipe.generate(PROMPT, seconds=1.5, seed=3, trim=EAGER)
    more = pipe.generate(PROMPT, seconds=1 / 16, trim=EAGER, state=first.state)
    assert more.frames.shape[1] == 1 and more.starts == more.ends == (9,)
    assert np.abs(more.frames[:, 0].astype(int) - video.frames[:, 24]).max() <= 1
    (row,) = records.chunks(more, 0)
    assert row["start"] == row["end"] == 9 / 16
    style.save(drift.picture({"TokenTrim": more}, PROMPT), tmp_path / "a.png")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_seeds_that_would_be_another(pipe, seed):
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 18446744"):
        pipe.stream(PROMPT, seconds=1, seed=seed)


def test_the_least_seconds_of_rolling_forcing(pipe):
    strategy = tt_jax.RollingForcing()
    start = np.zeros((9, 32, 32, 3), np.uint8)
    for settings, least in [({}, 46 / 16), ({"initial": start}, 58 / 16)]:
        request = {"prompt": PROMPT, "strategy": strategy, **settings}
        assert pipe.stream(seconds=least, **request)
        with pytest.raises(ValueError, match=f"at least {least:g} seconds here, not"):
            pipe.stream(seconds=least - 1 / 16, **request)


# --- initial frames -----------------------------------------------------------------------------


@pytest.mark.slow
def test_initial_frames_come_first_and_count(pipe):
    ramp = np.linspace(0, 255, OTHER_SIZE[0], dtype=np.uint8)[:, None, None]
    clip = np.broadcast_to(ramp, (11, *OTHER_SIZE, 3))
    settings = {"seconds": 2, "size": OTHER_SIZE, "trim": EAGER}
    video = pipe.generate([PROMPT] * 2, initial=clip, **settings)
    assert video.frames.shape == (2, 32, *OTHER_SIZE, 3)
    # 11 frames are 9 for the VAE; then 23 more: 6 latent frames, 2 chunks.
    assert video.starts == (9, 21)
    assert video.rollout.measured[:, 0].all()
    scaled = jnp.asarray(clip[None, 2:], jnp.float32) / 127.5 - 1
    there_and_back = (pipe.vae.decode(pipe.vae.encode(scaled)) + 1) * 127.5
    assert np.abs(np.asarray(there_and_back) - video.frames[:1, :9]).max() < 0.6
    same = pipe.generate([PROMPT] * 2, initial=clip[None].astype(np.float64) / 255, **settings)
    assert np.abs(same.frames.astype(int) - video.frames).max() <= 1


# --- what can't be ------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, 0.01, math.nan, math.inf])
def test_seconds_without_a_frame(pipe, seconds):
    with pytest.raises(ValueError, match="at least one frame"):
        pipe.stream(PROMPT, seconds=seconds)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"size": (30, 32)}, "multiples of 8"),
        ({"size": (0, 32)}, "multiples of 8"),
        ({"initial": np.zeros((1, 16, 16, 3), np.uint8)}, r"\[frames, 32, 32, 3\]"),
        ({"initial": np.zeros((0, 32, 32, 3), np.uint8)}, r"\[frames, 32, 32, 3\]"),
        ({"initial": np.zeros((2, 1, 32, 32, 3), np.uint8)}, r"\[frames, 32, 32, 3\]"),
        ({"initial": np.full((1, 32, 32, 3), 1.5)}, "between 0 and 1"),
        ({"initial": np.full((1, 32, 32, 3), np.nan)}, "between 0 and 1"),
        ({"initial": np.zeros((17, 32, 32, 3), np.uint8)}, "leave nothing to generate"),
    ],
)
def test_bad_requests(pipe, changed, message):
    with pytest.raises(ValueError, match=message):
        pipe.stream(**{"prompt": PROMPT, "seconds": 1} | changed)


def test_a_continued_video_has_its_size(pipe, video):
    with pytest.raises(ValueError, match="continued video"):
        pipe.stream(PROMPT, seconds=1, state=video.state, size=(32, 32))


def test_no_chunk_is_no_video():
    with pytest.raises(ValueError, match="no chunk"):
        tt_jax.Video.collect([])


def test_latents_that_are_not_finite_stop_the_run(pipe, monkeypatch):
    """The right chunk is named, though the device has begun the next one before it is looked at."""
    real, begun = pipeline.stream_latents, []

    def spoilt(*args, **settings):
        for out in real(*args, **settings):
            begun.append(out)
            bad = jnp.where(out.state.chunk == 3, jnp.nan, 0.0)
            yield type(out)(**vars(out) | {"latents": out.latents.at[0, 1, 2, 2, 0].add(bad)})

    monkeypatch.setattr(pipeline, "stream_latents", spoilt)
    chunks = pipe.stream(PROMPT, seconds=4, seed=3, trim=EAGER)
    assert (next(chunks).number, len(begun)) == (0, 2)
    assert (next(chunks).number, len(begun)) == (1, 3)
    with pytest.raises(NonFiniteError, match="chunk 3 ") as error:
        next(chunks)
    assert error.value.chunk == 2
