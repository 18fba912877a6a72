"""Files of frames: what is written plays everywhere, what is read is what players show."""

import itertools
import os
import struct
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace, ColorTrc
from PIL import Image, ImageCms, features

from tt_jax.files import atomic
from tt_jax.media import write
from tt_jax.media.read import open_video, read_clip, read_frames
from tt_jax.media.write import enlarge, tile, write_video
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
    write_video(tmp_path / "a.mp4", frames)
    decoded, stream = decode(tmp_path / "a.mp4")
    assert stream == ("h264", "yuv420p", 16)
    assert decoded.shape == (20, 256, 256, 3)
    error = decoded.astype(float) - enlarge(frames)
    assert np.sqrt((error**2).mean()) < 8
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("size", "written"),
    [((257, 301), (256, 300)), ((480, 832), (480, 832)), ((50, 80), (300, 480))],
)
def test_sizes(size, written, tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((2, *size, 3), np.uint8))
    assert decode(tmp_path / "a.mp4")[0].shape == (2, *written, 3)


def test_frames_are_taken_one_by_one(tmp_path):
    """A generator's frames, each of which is gone before the next is asked for but one."""
    made: list[weakref.ref] = []

    def frames():
        for level in range(30):
            assert sum(ref() is not None for ref in made) <= 2
            frame = np.full((256, 256, 3), level, np.uint8)
            made.append(weakref.ref(frame))
            yield frame
            del frame

    write_video(tmp_path / "a.mp4", frames())
    assert len(decode(tmp_path / "a.mp4")[0]) == 30


def test_colours_are_bt709_and_said_to_be(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, np.full((2, 480, 832, 3), (200, 30, 30), np.uint8))
    with av.open(path) as file:
        codec = file.streams.video[0].codec_context
        tags = codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc
        assert tags == (1, 1, 1, 1), "limited range, and BT.709 three times"
        yuv = next(file.decode(video=0)).to_ndarray()
    # BT.709's equations for 8 bits, limited: 16 + 219 y, 128 + 224 (b - y) / 1.8556, ...
    r, g, b = 200 / 255, 30 / 255, 30 / 255
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    wanted = 16 + 219 * y, 128 + 224 * (b - y) / 1.8556, 128 + 224 * (r - y) / 1.5748
    found = yuv[0, 0], yuv[480, 0], yuv[-1, -1]
    np.testing.assert_allclose(found, wanted, atol=1.5)
    np.testing.assert_allclose(next(read_frames(path))[0, 0], (200, 30, 30), atol=3)


def test_the_index_comes_first(tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((2, 64, 64, 3), np.uint8))
    content = (tmp_path / "a.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_no_frame_is_no_video(tmp_path):
    with pytest.raises(ValueError, match="no frame"):
        write_video(tmp_path / "a.mp4", iter(()))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        write_video(tmp_path / "nowhere" / "a.mp4", np.zeros((2, 64, 64, 3), np.uint8))


def test_nothing_is_left_of_an_interrupted_file(frames, tmp_path):
    (tmp_path / "a.mp4").write_text("before")

    def interrupted():
        yield from np.repeat(frames, 5, axis=0)
        assert len(list(tmp_path.iterdir())) == 2, "written aside first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", interrupted())
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
    clip = read_clip(tmp_path / "a.png", (32, 32), 100)
    assert clip.frames.shape == (1, 32, 32, 3)
    assert clip.source == (40, 100) and clip.fps is None
    assert np.abs(clip.frames[0].astype(int) - (255, 0, 0)).max() < 10
    same = read_clip(tmp_path / "a.png", (40, 100), 1)
    np.testing.assert_array_equal(same.frames[0], wide)


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = 255
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    clip = read_clip(tmp_path / "a.png", (40, 20), 1)
    assert clip.source == (40, 20)
    assert (clip.frames[0, :18] > 200).all() and (clip.frames[0, 22:] < 50).all()


@pytest.mark.parametrize(("fps", "count"), [(8, 40), (16, 20), (32, 10), (24, 14)])
def test_a_video_is_brought_to_16_frames_a_second(fps, count, tmp_path):
    """20 frames, each its number times 12 bright; frame k is the one shown at k / 16 s."""
    bright = np.arange(20, dtype=np.uint8) * 12
    path = tmp_path / "a.mp4"
    write_video(path, np.broadcast_to(bright[:, None, None, None], (20, 64, 64, 3)), fps)
    clip = read_clip(path, (32, 32), 1000)
    assert clip.fps == fps and clip.source == (256, 256)
    shown = clip.frames.mean(axis=(1, 2, 3)) / 12
    np.testing.assert_allclose(shown, np.arange(count) * fps // 16, atol=0.3)
    np.testing.assert_array_equal(read_clip(path, (32, 32), 7).frames, clip.frames[:7])


# --- what players do ----------------------------------------------------------------------------


def encode(path, pictures, times=None, *, codec="libx264", pix_fmt="yuv420p", rate=16, **tags):
    """A file of RGB pictures at times in milliseconds, with the stream's `tags`."""
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = pix_fmt, {"crf": "1"} if codec == "libx264" else {}
        space = tags.get("colorspace")
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=space)
            frame.pts = i * 1000 // rate if times is None else times[i]
            frame.time_base = Fraction(1, 1000)
            if "color_trc" in tags:
                frame.color_trc = tags["color_trc"]
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def quarters(height=96, width=128):
    """Red, green; blue, white: each corner another colour."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[: height // 2, : width // 2] = (255, 0, 0)
    image[: height // 2, width // 2 :] = (0, 255, 0)
    image[height // 2 :, : width // 2] = (0, 0, 255)
    return image


def corners(image):
    """The colours of the four corners, clockwise from the upper left one."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    h, w = (side // 4 for side in image.shape[:2])
    points = image[h, w], image[h, -w], image[-h, -w], image[-h, w]
    return [names.get(tuple((point > 128).astype(int)), str(point)) for point in points]


UPRIGHT = ["red", "green", "white", "blue"]


@pytest.mark.parametrize(
    ("matrix", "seen"),
    [
        ((1, 0, 0, 1), UPRIGHT),
        ((0, 1, -1, 0), ["blue", "red", "green", "white"]),  # clockwise, as a phone writes it
        ((-1, 0, 0, -1), ["white", "blue", "red", "green"]),
        ((0, -1, 1, 0), ["green", "white", "blue", "red"]),
        ((-1, 0, 0, 1), ["green", "red", "blue", "white"]),  # mirrored
        ((1, 0, 0, -1), ["blue", "white", "green", "red"]),
        ((0, 1, 1, 0), ["red", "blue", "white", "green"]),
    ],
)
def test_a_video_is_turned_as_its_display_matrix_says(matrix, seen, tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, [quarters()] * 4)
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    # ISO/IEC 14496-12: 40 bytes of version 0's track header precede the matrix.
    struct.pack_into(">5i", content, content.index(b"tkhd") + 44, a, b, 0, c, d)
    path.write_bytes(content)
    size = (128, 96) if b else (96, 128)
    clip = read_clip(path, size, 10)
    assert clip.source == size and corners(clip.frames[0]) == seen
    assert corners(next(read_frames(path))) == seen


def test_pixels_that_are_not_square(tmp_path):
    encode(tmp_path / "a.mp4", [quarters()] * 2, sample_aspect_ratio=Fraction(3, 2))
    assert read_clip(tmp_path / "a.mp4", (64, 64), 10).source == (96, 192)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "webm"])
def test_timestamps_decide(suffix, tmp_path):
    """A second of 8 frames, then one of 56: two seconds, whatever the mean rate is."""
    times = [125 * i for i in range(8)] + [1000 + 1000 * i // 56 for i in range(56)]
    bright = [np.full((64, 64, 3), 3 * i, np.uint8) for i in range(64)]
    path = tmp_path / f"a.{suffix}"
    encode(path, bright, times, codec="libvpx" if suffix == "webm" else "libx264", rate=56)
    clip = read_clip(path, (32, 32), 1000)
    assert len(clip.frames) == 32
    shown = clip.frames.mean(axis=(1, 2, 3)) / 3
    wanted = [max(k for k, t in enumerate(times) if t <= 62.5 * i + 1) for i in range(32)]
    np.testing.assert_allclose(shown, wanted, atol=0.8)
    # Measured over two seconds too, at the file's mean rate.
    fps, _ = open_video(path)
    seconds = sum(1 for _ in read_frames(path)) / fps
    assert abs(seconds - 2) < 0.05


def test_even_frames_are_measured_as_they_are(tmp_path):
    """NTSC's rate in a file that counts milliseconds: no frame twice, none left out."""
    bright = [np.full((64, 64, 3), 4 * (i % 2) + 100, np.uint8) for i in range(90)]
    times = [round(i * 1001 / 30) for i in range(90)]
    encode(tmp_path / "a.mkv", bright, times, rate=Fraction(30000, 1001))
    seen = [frame.mean() for frame in read_frames(tmp_path / "a.mkv")]
    assert len(seen) == 90 and all(a != b for a, b in itertools.pairwise(np.round(seen)))


@pytest.mark.parametrize(
    ("height", "tags"),
    [
        (96, {"colorspace": Colorspace.ITU709, "color_range": 1}),
        (96, {"colorspace": Colorspace.ITU601, "color_range": 1}),
        (96, {"colorspace": Colorspace.ITU601, "color_range": 2, "pix_fmt": "yuvj420p"}),
        (720, {"colorspace": Colorspace.ITU709, "color_range": 1}),
        (96, {}),  # what players take for BT.601
    ],
)
def test_colours_are_those_that_the_file_says(height, tags, tmp_path):
    colour = (200, 30, 30)
    encode(tmp_path / "a.mp4", [np.full((height, 128, 3), colour, np.uint8)] * 2, **tags)
    seen = next(read_frames(tmp_path / "a.mp4"))[8, 8]
    np.testing.assert_allclose(seen, colour, atol=3)


def test_a_high_dynamic_range_is_refused(tmp_path):
    encode(tmp_path / "a.mp4", [quarters()] * 2, color_trc=ColorTrc.SMPTE2084)
    with pytest.raises(ValueError, match=r"a\.mp4 has a high dynamic range"):
        read_clip(tmp_path / "a.mp4", (32, 32), 1)


# --- pictures -----------------------------------------------------------------------------------


def test_the_first_of_a_cameras_pictures_upright(tmp_path):
    """MPO: a photograph and its preview in one file; not a film."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo, preview = Image.fromarray(quarters()), Image.new("RGB", (64, 48))
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview], exif=exif)
    clip = read_clip(tmp_path / "a.jpg", (128, 96), 10)
    assert clip.fps is None and len(clip.frames) == 1 and clip.source == (128, 96)
    assert corners(clip.frames[0]) == ["blue", "red", "green", "white"]


def test_the_first_page_of_a_scan(tmp_path):
    page = Image.fromarray(quarters())
    page.save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", page.size)])
    clip = read_clip(tmp_path / "a.tif", (96, 128), 10)
    assert clip.fps is None and corners(clip.frames[0]) == UPRIGHT


def ramp(dtype, top):
    return np.tile(np.linspace(0, top, 128), (96, 1)).astype(dtype)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", ramp(np.uint8, 255)),
        ("a.png", ramp(np.uint16, 65535)),
        ("a.tif", ramp(np.uint16, 65535)),
        ("a.tif", ramp(">u2", 65535)),
        ("a.tif", ramp(np.float32, 1)),
    ],
)
def test_depths_are_scaled(name, values, tmp_path):
    Image.fromarray(values).save(tmp_path / name)
    seen = read_clip(tmp_path / name, (96, 128), 1).frames[0]
    np.testing.assert_allclose(seen, ramp(float, 255)[..., None].repeat(3, 2), atol=1)


@pytest.mark.parametrize("values", [ramp(np.float32, 300), ramp(np.int32, 10**6), -ramp(float, 1)])
def test_numbers_without_a_white_are_refused(values, tmp_path):
    kind = np.float32 if values.dtype == float else values.dtype
    Image.fromarray(values.astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif holds numbers whose white isn't known"):
        read_clip(tmp_path / "a.tif", (96, 128), 1)


def test_clear_parts_are_white(tmp_path):
    image = np.zeros((96, 128, 4), np.uint8)
    image[:48] = (255, 0, 0, 255)
    Image.fromarray(image).save(tmp_path / "a.png")
    grey = Image.fromarray(image).convert("LA")
    grey.save(tmp_path / "grey.png")
    Image.fromarray(image).quantize(4).save(tmp_path / "palette.png")
    red, dark = (255, 0, 0), (76, 76, 76)
    for name, above in [("a.png", red), ("grey.png", dark), ("palette.png", red)]:
        seen = read_clip(tmp_path / name, (96, 128), 1).frames[0]
        np.testing.assert_allclose(seen[10, 10], above, atol=2)
        assert (seen[80, 10] == 255).all(), name


@pytest.mark.parametrize(
    ("mode", "name"),
    [("P", "a.png"), ("LAB", "a.tif"), ("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("RGB", "a.bmp")],
)
def test_kinds_of_colour(mode, name, tmp_path):
    image = Image.fromarray(quarters())
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    image.convert(mode).save(tmp_path / name)
    assert corners(read_clip(tmp_path / name, (96, 128), 1).frames[0]) == UPRIGHT


def test_colours_of_a_profile_become_srgb(tmp_path):
    """sRGB's own profile, and one whose red and green primaries are exchanged."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"----", 1).replace(b"gXYZ", b"rXYZ", 1)
    swapped = swapped.replace(b"----", b"gXYZ", 1)
    for profile, seen in [
        (srgb, UPRIGHT), (swapped, ["green", "red", "white", "blue"]), (b"no profile", UPRIGHT)
    ]:  # fmt: skip
        Image.fromarray(quarters()).save(tmp_path / "a.png", icc_profile=profile)
        assert corners(read_clip(tmp_path / "a.png", (96, 128), 1).frames[0]) == seen


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "avif"])
def test_animations(kind, tmp_path):
    """Six pictures, half a second each but the first, of a quarter: 2.75 s."""
    if kind in ("webp", "avif") and not features.check(kind):
        pytest.skip(f"this Pillow has no {kind}")
    levels = [0, 40, 80, 120, 160, 200]
    first, *others = [Image.fromarray(np.full((64, 64, 3), n, np.uint8)) for n in levels]
    path = tmp_path / f"a.{kind}"
    first.save(path, save_all=True, append_images=others, duration=[250, *[500] * 5])
    clip = read_clip(path, (32, 32), 1000)
    assert len(clip.frames) == 44 and clip.fps == pytest.approx(6 / 2.75)
    wanted = np.repeat(levels, [4, *[8] * 5])
    np.testing.assert_allclose(clip.frames.mean(axis=(1, 2, 3)), wanted, atol=3)
    assert read_clip(path, (32, 32), 7).frames.shape == (7, 32, 32, 3)
    assert open_video(path) == (Fraction(6 * 4, 11), 2.75)


def test_a_gif_without_times_is_shown_as_browsers_do(tmp_path):
    images = [Image.fromarray(np.full((64, 64, 3), n, np.uint8)) for n in (0, 90, 180)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=0)
    assert open_video(tmp_path / "a.gif") == (10, 0.3)


def test_a_picture_in_a_films_clothes(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ValueError, match=r"a\.heic is a HEIC or AVIF picture"):
        read_clip(tmp_path / "a.heic", (32, 32), 1)


def test_a_picture_is_no_video(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is a picture, not a video"):
        next(read_frames(tmp_path / "a.png"))


# --- what is neither ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken", b"RIFF\0\0"])
def test_a_file_that_is_neither(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is neither a picture nor a video"):
        read_clip(tmp_path / "a.png", (32, 32), 10)


def test_a_file_cut_short(frames, tmp_path):
    write_video(tmp_path / "a.mp4", frames)
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "head.mp4").write_bytes(whole[:500])
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    Image.fromarray(frames[0]).save(tmp_path / "c.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:700])
    for name, said in [("head.mp4", "neither"), ("half.mp4", "damaged"), ("cut.jpg", "damaged")]:
        with pytest.raises(ValueError, match=rf"{name} is {said}"):
            read_clip(tmp_path / name, (32, 32), 100)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_clip(tmp_path / "a.png", (32, 32), 10)


def test_side_by_side(frames):
    both = np.stack(list(tile([frames, iter(frames[::-1])], ("plain", "TokenTrim"))))
    height, width = both.shape[1:3]
    assert len(both) == 20 and height > 256 and width > 512
    np.testing.assert_array_equal(both[:, -256:, :256], enlarge(frames))
    np.testing.assert_array_equal(both[:, -256:, -256:], enlarge(frames[::-1]))
    band = both[0, : height - 256]
    assert band.min() < 100 and (band[0] == 255).all(), "labels on white"
    assert (band[:, :256] != band[:, -256:]).any()


def test_five_videos_in_two_rows(frames):
    shades = [np.full_like(frames, 40 * i) for i in range(5)]
    labels = ("a label that is far too long to fit above a video", "b", "c", "d", "e")
    (joined,) = {frame.tobytes(): frame for frame in tile(shades, labels)}.values()
    side, gap, band = 256, 7, 28
    assert joined.shape == (2 * (band + side), 3 * side + 2 * gap, 3)
    for i in range(5):
        y, x = band + i // 3 * (band + side), i % 3 * (side + gap)
        assert (joined[y : y + side, x : x + side] == 40 * i).all()
    assert (joined[band + side :, -side:] == 255).all(), "no sixth one"
    assert (joined[:band, side : side + gap] == 255).all(), "the long label keeps to its place"


def test_videos_of_two_lengths_are_not_joined(frames):
    with pytest.raises(ValueError, match="shorter"):
        list(tile([frames, frames[:-1]], ("a", "b")))


def test_a_growing_file_is_kept_when_it_ends_early(tmp_path):
    """Whole under its name, or what there is of it under another; joined segments are one video."""
    frames = np.random.default_rng(0).integers(0, 255, (1, 40, 64, 64, 3), np.uint8)
    with write.growing([tmp_path / "a.mp4"]) as add:
        add(frames[:, :25])
        assert not (tmp_path / "a.mp4").exists()
        add(frames[:, 25:])
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    with pytest.raises(KeyboardInterrupt), write.growing([tmp_path / "b.mp4"]) as add:
        add(frames[:, :25])
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.partial.mp4"]
    parts = [tmp_path / "a.mp4", tmp_path / "b.partial.mp4"]
    write.join(parts, tmp_path / "c.mp4")
    shown = [list(read_frames(path)) for path in (*parts, tmp_path / "c.mp4")]
    assert list(map(len, shown)) == [40, 25, 65]
    np.testing.assert_array_equal(np.stack(shown[0] + shown[1]), np.stack(shown[2]))


def test_a_lossless_file_keeps_every_bit(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (9, 64, 48, 3), np.uint8)
    with write.Writer(tmp_path / "a.mkv", lossless=True) as writer:
        writer.add(frames)
    np.testing.assert_array_equal(np.stack(list(read_frames(tmp_path / "a.mkv"))), frames)
