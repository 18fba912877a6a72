"""The page in a real browser, on a server with a tiny model; and what makes its chunks."""

import json
import re
import socket
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import uvicorn
from playwright.sync_api import expect, sync_playwright

from tt_jax import pipeline
from tt_jax.cli import serving
from tt_jax.serve.app import create_app
from tt_jax.serve.engine import Engine
from tt_jax.serve.protocol import Start, Steer

pytestmark = pytest.mark.slow
expect.set_options(timeout=30_000)  # the machine may have other things to do
CHROMIUM = "/usr/bin/chromium"  # of Debian: `apt-get install chromium`
CAT, DOG = "a small red circle moving right on white", "a large blue square on black"
EVENTS = """() => {  // every frame as it is drawn: its number and its pixels
  window.seen = [];
  const video = document.getElementById("video");
  new MutationObserver(() => {
    const {data} = video.getContext("2d").getImageData(0, 0, video.width, video.height);
    window.seen.push([Number(video.dataset.frame), Array.from(data).filter((_, i) => i % 4 < 3)]);
  }).observe(video, {attributes: true, attributeFilter: ["data-frame"]});
}"""


@pytest.fixture(scope="module")
def engine(tiny_model):
    pipe = pipeline.load(tiny_model)
    strategies = serving.strategies_of(["infinity-rope"], pipe.config)
    return Engine(pipe, strategies, pipe.config.size, {"name": "tiny"})


@pytest.fixture(scope="module")
def address(engine):
    engine.warm()
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(serving.configuration(create_app(engine)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield serving.address(listening, None)
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Opens pages in which nothing may go wrong."""
    wrong, pages = [], []
    ours = (address, address.replace("http", "ws"), "blob:")

    def open_one():
        page = browser.new_page()
        pages.append(page)
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(ours) or wrong.append(asked.url))
        page.goto(address)
        expect(page.locator("#status")).to_have_attribute("data-state", "ready")
        return page

    yield open_one
    for page in pages:
        page.close()
    assert not wrong


def until_seen(page, count):
    """Waits for so many frames; the page's policy forbids `wait_for_function`, which evaluates."""
    for _ in range(600):
        if page.evaluate("seen.length") >= count:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"after 30 seconds there are {page.evaluate('seen.length')} frames")


def test_chunks_are_those_of_one_video(engine):
    """Making chunks one by one, with a new prompt and TokenTrim switched off, is `generate`."""
    start = Start(CAT, True, 2.0, "flush", 3, 0.1, "infinity-rope", False)
    state, frames = None, []
    for chunk in range(4):
        steer = start if chunk < 2 else Steer(DOG, True, 2.0, "cut")
        made = engine.make(start, steer, state, changed=chunk == 2)
        state = made.state
        frames.append(made.frames)
        assert made.switched == ("cut" if chunk == 2 else None)
        assert (made.row["severity"] is None) == (chunk == 0)
    whole = engine.pipe.generate(
        [(0, CAT), (21 / 16, DOG, "cut")],
        seconds=45 / 16,
        seed=3,
        strategy=engine.strategies["infinity-rope"],
    )
    np.testing.assert_array_equal(np.concatenate(frames), whole.frames[0])

    assert engine.make(start, Steer(DOG, False, -100.0, "none"), state).row["triggered"] is False
    assert engine.make(start, Steer(DOG, True, -100.0, "none"), state).row["triggered"] is True
    other = engine.make(start, steer, state, seed=4)
    assert (other.frames != engine.make(start, steer, state).frames).any()
    picture = np.full((1, 32, 32, 3), 200, np.uint8)
    assert engine.make(start, start, None, picture=picture).frames.shape == (13, 32, 32, 3)


def test_a_video_in_a_browser(open_page):
    page = open_page()
    page.evaluate(EVENTS)
    page.fill("#prompt", CAT)
    page.keyboard.press("Control+Enter")
    until_seen(page, 25)
    page.check("#overlay")
    page.fill("#prompt", DOG)
    assert page.input_value("#switch") == "flush"  # the policy's own
    page.select_option("#switch", "cut")
    page.click("#go")
    expect(page.locator("#video")).to_have_attribute("aria-label", f"Video of: {DOG}")
    expect(page.locator("#curve")).to_have_attribute("aria-label", re.compile("new prompts at"))

    second = open_page()
    second.fill("#prompt", CAT)
    second.click("#go")
    expect(second.locator("#status")).to_have_text("Waiting for the device: place 1 of 1.")

    page.bring_to_front()
    page.fill("#branch-seed", "5")
    page.click("#branch")
    expect(page.locator("#before-caption")).to_contain_text("with seed 5")
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped after")
    seen = page.evaluate("seen")
    numbers = [number for number, _ in seen]
    assert numbers == list(range(len(numbers)))  # each once, in order
    with page.expect_download() as download:
        page.click("#mp4")
    with av.open(str(download.value.path())) as file:
        frames = [frame.to_ndarray(format="rgb24")[::8, ::8] for frame in file.decode(video=0)]
    assert len(frames) == len(numbers)
    with page.expect_download() as download:
        page.click("#json")
    (switch,) = json.loads(Path(str(download.value.path())).read_text(encoding="utf-8"))["switches"]
    assert (switch["prompt"], switch["how"]) == (DOG, "cut")
    shown = np.array([pixels for _, pixels in seen], float).reshape(-1, 32, 32, 3)
    apart = np.abs(shown[:, None] - np.array(frames, float)[None]).mean((2, 3, 4))
    assert (apart.argmin(1) == numbers).mean() > 0.9  # of all frames of the file, that one
    assert np.median(np.diag(apart)) < 12

    second.bring_to_front()
    expect(second.locator("#status")).to_have_attribute("data-state", "playing")
    third = open_page()
    third.fill("#prompt", CAT)
    third.click("#go")
    expect(third.locator("#status")).to_have_attribute("data-state", "queued")
    second.close()
    expect(third.locator("#status")).to_have_attribute("data-state", "playing")


def test_a_start_picture_is_dropped(open_page):
    page = open_page()
    page.evaluate(EVENTS)
    page.evaluate("""async () => {
      const canvas = new OffscreenCanvas(64, 48);
      const context = canvas.getContext("2d");
      context.fillStyle = "rgb(0, 200, 0)";
      context.fillRect(0, 0, 64, 48);
      const data = new DataTransfer();
      data.items.add(new File([await canvas.convertToBlob()], "green.png", {type: "image/png"}));
      document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    }""")
    expect(page.locator("#preview")).to_be_visible()
    page.fill("#prompt", CAT)
    page.click("#go")
    until_seen(page, 1)
    page.click("#stop")
    expect(page.locator("#status")).to_contain_text("Stopped after")
