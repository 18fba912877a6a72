"""The web application on an engine without a model."""

import io
import json
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from stub import ORIGIN, START, Stub, unpack
from test_protocol import damaged

from tt_jax.serve import app as application
from tt_jax.serve.app import create_app

BASE = "http://127.0.0.1:8000"


@pytest.fixture
def client():
    stub = Stub()
    with TestClient(create_app(stub), BASE) as client:
        client.stub = stub
        yield client


class Page:
    """A page that shows everything at once."""

    def __init__(self, socket):
        self.socket, self.frames, self.chunks, self.told = socket, 0, [], []
        self.offer = socket.receive_json()

    def say(self, message):
        self.socket.send_text(json.dumps(message))

    def next(self):
        """The next message; a chunk is shown and kept."""
        message = self.socket.receive()
        if message["type"] == "websocket.close":
            raise WebSocketDisconnect(message["code"])
        if message.get("text") is not None:
            self.told.append(json.loads(message["text"]))
            return self.told[-1]
        header, parts = unpack(message["bytes"])
        self.chunks.append((header, parts))
        self.frames = header["frame"] + len(parts) - 2
        self.say({"type": "shown", "frames": self.frames})
        return header

    def until(self, kind):
        """Goes on to a text of some kind."""
        while (message := self.next()).get("type") != kind:
            pass
        return message

    def watch(self, chunks):
        """Goes on for some chunks."""
        wanted = len(self.chunks) + chunks
        while len(self.chunks) < wanted:
            self.next()


def visit(client, **headers):
    return client.websocket_connect("/live", headers={**ORIGIN, **headers})


def decoded(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def metric(client, name):
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
    return float(lines[f"tt_jax_{name}"])


def test_a_video_is_made_steered_branched_and_fetched(client):
    with visit(client) as socket:
        page = Page(socket)
        assert page.offer["type"] == "hello" and page.offer["shares"] == [0.1, 0.2]
        page.say(START)
        begun = page.until("started")
        page.watch(3)
        steer = {"type": "steer", "prompt": "a dog", "trim": False, "lam": 3.0, "switch": "cut"}
        page.say(steer)
        assert page.until("error")["message"] == "the switch of window is one of none, flush."
        page.say(steer | {"switch": "flush"})
        while page.chunks[-1][0]["prompt"] != "a dog":
            page.watch(1)
        assert not page.chunks[-1][0]["trim"]
        page.say({"type": "branch", "seed": 7})
        branch = page.until("started")
        assert (branch["seed"], branch["frame"]) == (7, page.frames)
        page.watch(2)
        page.say({"type": "stop"})
        ending = page.until("stopped")
        assert ending == {"type": "stopped", "reason": None, "frames": page.frames, "branch": True}

        numbers = [header["frame"] for header, _ in page.chunks]
        assert numbers == list(range(0, page.frames, 12))
        fetched = client.get(f"/takes/{branch['take']}.mp4")
        assert fetched.headers["content-type"] == "video/mp4"
        frames = decoded(fetched.content)
        assert frames.shape == (page.frames, 256, 256, 3)  # small ones are enlarged
        images = [part for _, parts in page.chunks for part in parts[2:]]
        for frame, image in zip(frames, images, strict=True):
            shown = np.asarray(Image.open(io.BytesIO(image)))
            assert abs(frame.mean() - shown.mean()) < 2.5  # neighbours differ by 4
        assert len(decoded(client.get(f"/takes/{begun['take']}.mp4").content)) == branch["frame"]

        record = client.get(f"/takes/{branch['take']}.json").json()
        rows = record["samples"][0]["live"]
        assert len(rows) == len(page.chunks) and rows[-1]["end"] == page.frames / 16
        (switch,) = record["switches"]
        assert (switch["prompt"], switch["how"]) == ("a dog", "flush")
        assert [row["lam"] for row in record["steering"]] == [2.0, None]
        assert record["branches"][0] == {
            "chunk": branch["frame"] // 12 + 1, "start": branch["frame"] / 16, "seed": 7,
        }  # fmt: skip
        page.say({"type": "branch", "seed": 8})  # also once it has stopped
        assert page.until("started")["frame"] == page.frames
    assert metric(client, "streams_total") == 3
    seeds = [seed for _, _, _, seed, _ in client.stub.asked if seed is not None]
    assert seeds[0] == 7 and set(seeds[1:]) <= {8}  # the first chunk of each branch, no other


def test_no_more_is_made_than_the_page_has_shown(client):
    with visit(client) as socket:
        page = Page(socket)
        page.say(START)
        page.until("started")
        for _ in range(3):
            socket.receive_bytes()  # and doesn't say that it was shown
        time.sleep(0.2)
        assert metric(client, "frames_total") == 36  # the third left when 24 hadn't been shown
        page.say({"type": "shown", "frames": 12})
        socket.receive_bytes()
        page.say({"type": "shown", "frames": 999})
        assert "no such frame" in socket.receive_json()["message"]


def test_others_wait_and_get_their_turn(client):
    with visit(client) as second_socket:
        with visit(client) as first_socket:
            first, second = Page(first_socket), Page(second_socket)
            first.say(START)
            first.watch(1)
            second.say(START)
            assert second.next() == {"type": "queue", "place": 1, "waiting": 1}
            with visit(client) as third_socket:
                third = Page(third_socket)
                third.say(START)
                assert third.next() == {"type": "queue", "place": 2, "waiting": 2}
                assert metric(client, "queue") == 2
            assert second.next()["waiting"] == 2 and second.next()["waiting"] == 1
            first.watch(1)
        began = time.monotonic()  # the first has left
        second.watch(2)
        assert time.monotonic() - began < 2
        second.say({"type": "stop"})
        second.until("stopped")
        second.say({"type": "branch", "seed": 1})
        second.until("started")


def test_who_waits_can_stop_and_what_was_stopped_before_another_cannot_go_on(client):
    with visit(client) as first_socket, visit(client) as second_socket:
        first, second = Page(first_socket), Page(second_socket)
        first.say(START)
        first.watch(1)
        second.say(START)
        assert second.next()["type"] == "queue"
        second.say({"type": "stop"})
        assert second.next()["type"] == "stopped"
        assert metric(client, "queue") == 0
        first.say({"type": "stop"})
        assert first.until("stopped")["branch"]
        second.say(START)
        second.watch(1)  # a state is a device's memory: the first's is let go
        first.say({"type": "branch", "seed": 1})
        assert "nothing to continue from" in first.next()["message"]


def test_a_picture_to_start_from(client):
    file = io.BytesIO()
    Image.new("RGBA", (50, 20), (255, 0, 0, 128)).save(file, "PNG")
    with visit(client) as socket:
        page = Page(socket)
        page.say(START | {"picture": True})
        assert "no picture to start from" in page.next()["message"]
        for bad in (
            b"",
            b"GIF89a" + b"\0" * 50,
            file.getvalue()[:60],
            b"#EXTM3U\nfile:///etc/passwd",
        ):
            socket.send_bytes(bad)
            assert page.next()["message"].startswith("this is no picture")
        socket.send_bytes(b"\0" * (8 * 2**20 + 1))
        assert "at most 8 MB" in page.next()["message"]
        socket.send_bytes(file.getvalue())
        assert page.next() == {"type": "picture"}
        page.say(START | {"picture": True})
        page.watch(1)
    assert client.stub.asked[0][-1] == (1, 32, 32, 3)


def test_a_picture_of_too_many_pixels_is_refused_unread(client, monkeypatch):
    monkeypatch.setattr("tt_jax.serve.picture.MOST_PIXELS", 100)
    file = io.BytesIO()
    Image.new("L", (101, 1)).save(file, "PNG")
    with visit(client) as socket:
        page = Page(socket)
        socket.send_bytes(file.getvalue())
        assert "too many pixels" in page.next()["message"]


def test_bad_input_leaves_anothers_video_alone(client):
    with visit(client) as good_socket, visit(client) as bad_socket:
        good, bad = Page(good_socket), Page(bad_socket)
        good.say(START)
        good.watch(1)
        refused = 0
        for text in damaged(500):
            bad_socket.send_text(text)
        bad.say({"type": "shown", "frames": 2**53})
        good.watch(2)
        while not (refused and bad.told[-1].get("message") == "no such frame was sent."):
            refused += bad.next().get("type") == "error"
        assert refused > 300
        good.watch(2)
        starts = [header["frame"] for header, _ in good.chunks]
        assert starts == list(range(0, 12 * len(starts), 12))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("unspeakable", "the prompt can't be."), ("crash", "Something went wrong; the server's log")],
)
def test_what_goes_wrong_is_a_sentence(client, prompt, said, caplog):
    with visit(client) as socket:
        page = Page(socket)
        page.say(START | {"prompt": prompt})
        reason = page.until("stopped")["reason"]
        assert said in reason and "secret" not in reason
        page.say(START)  # and the next video is made
        page.watch(1)
        steer = {"type": "steer", "trim": True, "lam": 1.0, "switch": "none"}
        page.say(steer | {"prompt": "unspeakable"})
        assert page.until("error")["message"] == "the prompt can't be."
        page.watch(2)  # with the prompt that it has
    assert ("secret" in caplog.text) == (prompt == "crash")


def test_settings_that_the_page_does_not_offer(client):
    with visit(client) as socket:
        page = Page(socket)
        for setting in ({"p": 0.3}, {"cache": "/etc/passwd"}):
            page.say(START | setting)
            assert " is one of " in page.next()["message"]
        page.say({"type": "branch", "seed": 1})
        assert "nothing to continue from" in page.next()["message"]
        page.say(START)
        page.watch(1)
        page.say(START)
        assert "stop it first" in page.until("error")["message"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example:8000"}, 403),  # a name that points here
        ({"host": "[::1"}, 403),
        ({"origin": "http://evil.example"}, 403),
    ],
)
def test_who_may_ask(client, headers, code):
    answer = client.get("/", headers=headers)
    assert answer.status_code == code
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


@pytest.mark.parametrize("origin", [None, "http://evil.example", "http://127.0.0.1:9000", "null"])
def test_only_our_page_may_connect(client, origin):
    headers = {"host": ORIGIN["host"]} | ({} if origin is None else {"origin": origin})
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/live", headers=headers):
        pass
    assert metric(client, "refused_total") == 1


def test_a_token_is_needed_where_there_is_one():
    host = "http://video.example:8000"
    ours = {"origin": host, "host": "video.example:8000"}
    with TestClient(create_app(Stub(), "open-sesame"), host, follow_redirects=False) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        for path in ("/", "/?token=wrong", "/page.js", "/metrics", "/takes/x.mp4", "/?token=%ff"):
            assert client.get(path).status_code == 401
        for headers in ({"cookie": "tt_jax_token=wrong"}, {"authorization": b"Bearer wr\xf6ng"}):
            assert client.get("/", headers=headers).status_code == 401
        connect = client.websocket_connect("/live?token=open-sesame", headers=ours)
        with pytest.raises(WebSocketDisconnect), connect:
            pass
        bearer = {"authorization": "Bearer open-sesame"}
        assert client.get("/metrics", headers=bearer).status_code == 200
        entered = client.get("/?token=open-sesame")
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert "HttpOnly" in entered.headers["set-cookie"]
        assert client.get("/").status_code == 200  # by the cookie
        ours["cookie"] = "tt_jax_token=open-sesame"
        with client.websocket_connect("/live", headers=ours) as socket:
            assert socket.receive_json()["type"] == "hello"
        with pytest.raises(WebSocketDisconnect):
            foreign = ours | {"origin": "http://evil.example"}
            with client.websocket_connect("/live", headers=foreign):
                pass


def test_nothing_of_the_file_system_is_reachable(client):
    for path in (
        "/../../etc/passwd", "/takes/../../../etc/passwd.mp4", "/takes/%2e%2e%2fetc%2fpasswd.json",
        "/page/index.html", "/app.py", "/takes/unknown.mp4", "/takes/unknown.json", "//etc/passwd",
    ):  # fmt: skip
        assert client.get(path).status_code == 404
    assert client.post("/").status_code == 405


def test_the_page_asks_for_nothing_from_elsewhere(client):
    for path in ("/", "/page.css", "/page.js", "/player.js", "/curve.js"):
        text = client.get(path).text
        assert "http" not in text.replace("http-equiv", "").replace('"https:"', "")
        assert "<style" not in text and " style=" not in text and " onclick" not in text


def test_visitors_who_do_nothing_are_let_go(monkeypatch):
    monkeypatch.setattr(application, "MOST", 1)
    with TestClient(create_app(Stub(), idle=0.3, unwatched=0.1), BASE) as client:
        with visit(client) as socket:
            page = Page(socket)
            with visit(client) as other:
                assert other.receive()["code"] == 1013
            page.say(START)
            page.until("started")
            for _ in range(3):
                socket.receive_bytes()
            assert "Nobody watched" in socket.receive_json()["reason"]
            assert socket.receive()["code"] == 1000
        with visit(client) as socket:  # the place is free
            assert socket.receive_json()["type"] == "hello"


def test_nothing_is_left_of_those_who_left():
    stub = Stub(0.02)
    with TestClient(create_app(stub), BASE) as client:
        before = threading.active_count()
        for _ in range(12):
            with visit(client) as socket:
                page = Page(socket)
                page.say(START)
                page.watch(1)
        assert metric(client, "visitors") == metric(client, "streams") == 0
        assert threading.active_count() <= before + 2
        # The chunk in flight is finished; after it none is begun (one takes 0.02 s).
        for _ in range(20):
            made = len(stub.asked)
            time.sleep(0.2)
            if len(stub.asked) == made:
                return
        pytest.fail("chunks are made for nobody")
