import os

import av
import numpy as np
import pytest
from PIL import Image

from tt_jax.files import atomic
from tt_jax.media import video
from tt_jax.shapes.world import render, sample_scene


@pytest.fixture(scope="module")
def frames():
    return render(sample_scene(np.random.default_rng(0), "small_moving"), 20)


def decode(path):
    with av.open(path) as file:
        stream = file.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])
        codec = stream.codec_context
        return frames, (codec.name, codec.pix_fmt, stream.average_rate)


def test_written_files_play_in_browsers(frames, tmp_path):
    video.write(tmp_path / "a.mp4", frames)
    decoded, stream = decode(tmp_path / "a.mp4")
    assert stream == ("h264", "yuv420p", 16)
    assert decoded.shape == (20, 256, 256, 3)
    error = decoded.astype(float) - video.enlarge(frames)
    assert np.sqrt((error**2).mean()) < 8
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("size", "written"),
    [((257, 301), (256, 300)), ((480, 832), (480, 832)), ((50, 80), (300, 480))],
)
def test_sizes(size, written, tmp_path):
    video.write(tmp_path / "a.mp4", np.zeros((2, *size, 3), np.uint8))
    assert decode(tmp_path / "a.mp4")[0].shape == (2, *written, 3)


def test_nothing_is_left_of_an_interrupted_file(frames, tmp_path):
    (tmp_path / "a.mp4").write_text("before")

    class Interrupting:
        shape = frames.shape

        def __getitem__(self, index):
            yield frames[0]
            assert len(list(tmp_path.iterdir())) == 2, "written aside first"
            raise KeyboardInterrupt

        def repeat(self, *_, **__):
            return self

    with pytest.raises(KeyboardInterrupt):
        video.write(tmp_path / "a.mp4", Interrupting())
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "before"


def test_whole_keeps_the_suffix_and_the_folder(tmp_path):
    with atomic(tmp_path / "a.b.png") as aside:
        assert aside.parent == tmp_path and aside.suffix == ".png" and aside.name[0] == "."
        aside.write_text("x")
        assert not (tmp_path / "a.b.png").exists()
    assert os.listdir(tmp_path) == ["a.b.png"]


def test_a_picture_is_resized_and_cropped_around_its_centre(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = (255, 0, 0)
    Image.fromarray(wide).save(tmp_path / "a.png")
    clip = video.read(tmp_path / "a.png", (32, 32), 100)
    assert clip.frames.shape == (1, 32, 32, 3)
    assert clip.source == (40, 100) and clip.fps is None
    assert np.abs(clip.frames[0].astype(int) - (255, 0, 0)).max() < 10
    same = video.read(tmp_path / "a.png", (40, 100), 1)
    np.testing.assert_array_equal(same.frames[0], wide)


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = 255
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    clip = video.read(tmp_path / "a.png", (40, 20), 1)
    assert clip.source == (40, 20)
    assert (clip.frames[0, :18] > 200).all() and (clip.frames[0, 22:] < 50).all()


@pytest.mark.parametrize(("fps", "count"), [(8, 40), (16, 20), (32, 10), (24, 14)])
def test_a_video_is_brought_to_16_frames_a_second(fps, count, tmp_path):
    """20 frames, each its number times 12 bright; frame k is the one shown at k / 16 s."""
    bright = np.arange(20, dtype=np.uint8) * 12
    path = tmp_path / "a.mp4"
    video.write(path, np.broadcast_to(bright[:, None, None, None], (20, 64, 64, 3)), fps)
    clip = video.read(path, (32, 32), 1000)
    assert clip.fps == fps and clip.source == (256, 256)
    shown = clip.frames.mean(axis=(1, 2, 3)) / 12
    np.testing.assert_allclose(shown, np.arange(count) * fps // 16, atol=0.3)
    np.testing.assert_array_equal(video.read(path, (32, 32), 7).frames, clip.frames[:7])


def test_a_gif_is_a_video(frames, tmp_path):
    images = [Image.fromarray(frame) for frame in frames[:6]]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=250)
    clip = video.read(tmp_path / "a.gif", (64, 64), 1000)
    assert len(clip.frames) == 24 and clip.fps == 4


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken", b"RIFF\0\0"])
def test_a_file_that_is_neither(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is neither a picture nor a video"):
        video.read(tmp_path / "a.png", (32, 32), 10)


def test_a_file_cut_short(frames, tmp_path):
    video.write(tmp_path / "a.mp4", frames)
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:500])
    Image.fromarray(frames[0]).save(tmp_path / "c.jpg")
    (tmp_path / "d.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:700])
    for name in ("b.mp4", "d.jpg"):
        with pytest.raises(ValueError, match="neither"):
            video.read(tmp_path / name, (32, 32), 10)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        video.read(tmp_path / "a.png", (32, 32), 10)


def test_side_by_side(frames):
    both = video.side_by_side(frames, frames[::-1].copy(), ("plain", "TokenTrim"))
    height, width = both.shape[1:3]
    assert len(both) == 20 and height > 256 and width > 512
    np.testing.assert_array_equal(both[:, -256:, :256], video.enlarge(frames))
    np.testing.assert_array_equal(both[:, -256:, -256:], video.enlarge(frames[::-1]))
    band = both[0, : height - 256]
    assert band.min() < 100 and (band[0] == 255).all(), "labels on white"
    assert (band[:, :256] != band[:, -256:]).any()
