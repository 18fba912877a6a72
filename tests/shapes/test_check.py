import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

import tt_jax
from tt_jax.models.configs import RolloutConfig
from tt_jax.shapes import check
from tt_jax.shapes.checker import measure
from tt_jax.shapes.language import evaluation_prompts
from tt_jax.shapes.verdict import judge
from tt_jax.shapes.world import render


class NoisyVAE(nnx.Module):
    """Off by 0.02 everywhere: 20 log10(2 / 0.02) = 40 dB. Every fact survives."""

    def encode(self, video):
        return video

    def decode(self, latents):
        return latents + 0.02


class Perfect:
    """A pipeline that renders the scene a prompt was written for, but for some of them."""

    def __init__(self, prompts, blind=()):
        self.scenes, self.blind = dict(prompts), set(blind)
        self.vae, self.seeds = NoisyVAE(), []
        self.config = SimpleNamespace(rollout=RolloutConfig())

    def generate(self, prompts, *, seconds, seed, trim, strategy):
        assert trim == tt_jax.TokenTrim.off()
        self.seeds.append(seed)
        videos = [render(self.scenes[text], int(seconds * 16)) for text in prompts]
        pairs = zip(videos, prompts, strict=True)
        return SimpleNamespace(frames=np.stack([v * (text not in self.blind) for v, text in pairs]))


def test_wilson_interval():
    # Textbook values.
    np.testing.assert_allclose(check.Share(0, 10).interval, (0, 27.75), atol=0.01)
    assert all(str(check.Share(0, n)).startswith("0.0 [0.0, ") for n in range(1, 70))
    assert all(str(check.Share(n, n)).endswith(", 100.0]") for n in range(1, 70))
    np.testing.assert_allclose(check.Share(81, 263).interval, (25.53, 36.62), atol=0.01)
    assert str(check.Share(0, 0)) == "-"


@pytest.mark.slow
def test_table_of_a_perfect_and_of_a_half_blind_model(monkeypatch, capsys, tmp_path):
    prompts = evaluation_prompts(20)
    pipe = Perfect(prompts)
    monkeypatch.setattr(tt_jax, "load", lambda name: pipe, raising=False)
    file = tmp_path / "check.json"
    check.main(["--prompts", "20", "--json", str(file)])
    printed = capsys.readouterr().out
    assert "VAE, dB" in printed
    assert "40.0" in printed
    record = json.loads(file.read_text())
    assert record["psnr"] == pytest.approx(40, abs=0.01)
    assert set(record["ceiling"].values()) == {100.0}
    assert record["end"] == {}
    assert len(record["prompts"]) == 20
    assert len(set(pipe.seeds)) == 2
    for fact in (*check.TARGETS, *check.UNTARGETED):
        assert record["shares"][fact]["all"]["right"] == record["shares"][fact]["all"]["asked"]
    assert record["shares"]["count"]["panning"]["asked"] == 5

    blind = Perfect(prompts, blind=[text for text, _ in prompts[::2]])
    judged = [judge(video, text) for text, video in check.videos(blind, prompts)]
    found = check.shares(judged, [scene.regime for _, scene in prompts])
    assert found["colour"]["all"] == check.Share(10, 20)


def test_what_the_end_of_a_video_has_kept():
    (text, scene), *_ = [
        (text, scene)
        for text, scene in evaluation_prompts(40)
        if scene.regime == "medium" and len(scene.objects) == 2 and scene.objects[0].speed
    ]
    whole = render(scene, 10 * 16)
    right = check.kept(measure(whole), text)
    assert right["lost"] == 0 and right["moving"] == 1 and right["colour"] < 0.01
    frozen = np.concatenate([whole[:-48], np.repeat(whole[-48:-47], 48, axis=0)])
    assert check.kept(measure(frozen), text)["moving"] == 0
    gone = whole.copy()
    gone[-48:] = render(replace(scene, objects=()), 48)
    end = check.kept(measure(gone), text)
    assert end["lost"] == 1 and np.isnan(end["colour"])


def test_fates():
    (text, scene), *_ = [
        (text, scene)
        for text, scene in evaluation_prompts(120)
        if len(scene.objects) == 2 and not any(one.speed for one in scene.objects)
    ]  # at rest, so that none hides the other

    video = render(scene, 12 * 16)
    assert check.fates(measure(video), text) == [["kept"] * 10] * 2
    other = scene.objects[0]
    video[5 * 16 : 6 * 16] = render(replace(scene, objects=scene.objects[1:]), 16, 5 * 16)
    shape = "circle" if other.shape != "circle" else "square"
    changed = replace(scene, objects=(replace(other, shape=shape), scene.objects[1]))
    video[-16:] = render(changed, 16, 11 * 16)
    first, second = check.fates(measure(video), text)
    assert first == ["kept"] * 3 + ["lost"] + ["kept"] * 5 + ["changed"]
    assert second == ["kept"] * 10
    said = check.fate_table([first, second], 12).splitlines()
    assert said[0] == "of 2 objects right at second 3, by second [3, 10, 12]:"
    assert [line.split(" [")[0] for line in said[1:]] == ["changed, %: 0.0", "lost, %: 0.0"]
    assert said[1].endswith("50.0 [9.5, 90.5]")
    # What is wrong from the start has no fate.
    assert check.fates(measure(render(changed, 12 * 16)), text) == [["kept"] * 10]
