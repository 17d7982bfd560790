"""The application: its protocol, its queue, its limits, and what it says when something is wrong."""

import io
import json
import logging
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from served import Slow, ask, client, connect, open_run, send, settle, until_end
from starlette.websockets import WebSocketDisconnect


def picture(width=4, height=4, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def claims(width, height):
    """A PNG of few bytes whose header claims many pixels."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


# A request from its beginning to its file


def test_a_request(digits_source):
    with client(digits_source) as opened, connect(opened) as socket:
        about = opened.get("/api/about").json()
        assert about["classes"] == list("0123456789") and about["own"]["steps"] == 25 and about["limits"]["num"] == 64
        send(socket, {"labels": ["4"], "num": 2, "steps": 6, "seed": 3})
        heard = until_end(socket)
        kinds = [m["type"] for m in heard]
        assert kinds == ["accepted", "queued", "started", *["step"] * 6, "done"]
        assert [m["index"] for m in heard if m["type"] == "step"] == [1, 2, 3, 4, 5, 6]
        done = heard[-1]
        assert done["names"] == ["4", "4"] and done["facts"]["nfe"] == 6 and len(done["view"]["items"]) == 2
        told = {"labels": ["4"], "num": 2, "steps": 6, "seed": 3, "guidance": 1.5}
        assert done["settings"] == told
        assert done["files"] == ["png", "npz", "json"]
        base = f"/api/results/{done['job']}"
        with Image.open(io.BytesIO(opened.get(f"{base}/png").content)) as grid:
            assert json.loads(grid.text["condiff"])["settings"] == told
        arrays = np.load(io.BytesIO(opened.get(f"{base}/npz").content))
        assert arrays["x"].shape == (2, 1, 8, 8) and json.loads(str(arrays["settings"]))["settings"] == told
        answer = opened.get(f"{base}/json")
        assert answer.json()["format"] == "condiff samples 1" and "attachment" in answer.headers["content-disposition"]
        assert opened.get(f"{base}/txt").status_code == 404


def test_the_page_and_what_belongs_to_it(digits_source):
    with client(digits_source) as opened:
        page = opened.get("/").text
        assert "http://" not in page and "https://" not in page
        for path in ("app.css", "app.js", "form.js", "panel.js", "draw.js", "meta.js", "icon.svg"):
            answer = opened.get(f"/{path}")
            assert answer.status_code == 200
            assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("}://${", "").replace(
                "// ", ""
            )


@pytest.mark.parametrize(
    "path",
    [
        "/static/app.js", "/../config.json", "/%2e%2e/config.json", "/api/results/x/npz", "/api/results/../about/json",
        "/api/results/%2e%2e%2fconfig/json", "/docs", "/openapi.json", "/config.json", "//etc/passwd",
    ],
)  # fmt: skip
def test_no_other_path_leads_anywhere(digits_source, path):
    with client(digits_source) as opened:
        answer = opened.get(path)
        assert answer.status_code == 404 and set(answer.json()) == {"error"}


# Pictures


def test_pictures(digits_source):
    with client(digits_source, upload=3000) as opened:
        send_picture = lambda raw: opened.post("/api/pictures", content=raw)
        first = send_picture(picture(6, 5))
        assert first.json()["width"] == 6 and first.json()["height"] == 5
        assert send_picture(picture(6, 5)).json() == first.json()
        for kind in ("JPEG", "WEBP", "BMP"):
            assert send_picture(picture(kind=kind)).status_code == 200
        for raw in (b"", b"text", b"GIF89a", picture()[:20], b"<svg/>", b"%!PS-Adobe"):
            answer = send_picture(raw)
            assert answer.status_code == 400 and "no picture" in answer.json()["error"]
        assert send_picture(b"x" * 3001).status_code == 413
        assert opened.get("/api/pictures").status_code == 405


def test_a_picture_of_many_pixels_is_never_decoded(pairs):
    source = open_run(pairs)
    with client(source) as opened:
        answer = opened.post("/api/pictures", content=claims(8000, 8000))
        assert answer.status_code == 400 and "40000000 pixels here, got 8000 x 8000" in answer.json()["error"]
        assert "error" in opened.post("/api/pictures", content=claims(60_000, 60_000)).json()


def test_a_broken_picture_is_an_error_of_the_request(pairs):
    source = open_run(pairs)
    with client(source) as opened:
        sent = opened.post("/api/pictures", content=claims(64, 64)).json()
        name = source.about()["conditions"][0]["name"]
        told = ask(opened, conditions={name: {"picture": sent["picture"]}})
        assert told["type"] == "error" and "not a readable picture" in told["message"]


def test_old_pictures_make_room(pairs):
    source = open_run(pairs, uploads=2)
    names = [source.uploads.add(picture(width))[0] for width in (3, 4, 5)]
    assert list(source.uploads._kept) == names[1:]


# The queue


def test_requests_wait_in_line_and_are_told_where(digits_source):
    source = Slow()
    with client(source) as opened, connect(opened) as first, connect(opened) as second:
        send(first, {"seed": 1, "steps": 1}, "A")
        assert source.begun.acquire(timeout=10)
        send(first, {"seed": 2}, "B")
        send(second, {"seed": 3}, "C")
        heard = [json.loads(second.receive_text()) for _ in range(2)]
        assert {(m["type"], m.get("ahead")) for m in heard} == {("accepted", None), ("queued", 2)}
        source.go.release(3)
        assert [m.get("ahead") for m in until_end(second, "C") if m["type"] == "queued"] == [1]
        assert until_end(first, "A")[-1]["type"] == "done" and until_end(first, "B")[-1]["type"] == "done"
        assert source.order == [1, 2, 3]


def test_cancelling_between_steps():
    source = Slow()
    with client(source) as opened, connect(opened) as socket:
        send(socket, {"steps": 100}, "A")
        assert source.begun.acquire(timeout=10)
        source.go.release(2)
        heard = [json.loads(socket.receive_text()) for _ in range(5)]
        assert [m["type"] for m in heard] == ["accepted", "queued", "started", "step", "step"]
        send(socket, None, "A", "cancel")
        settle(socket)
        source.go.release(100)
        assert [m["type"] for m in until_end(socket)][-1] == "cancelled"
        send(socket, {"steps": 1}, "A")  # and the next one runs
        assert until_end(socket)[-1]["type"] == "done"


def test_cancelling_what_waits_lets_the_others_move_up():
    source = Slow()
    with client(source) as opened, connect(opened) as socket:
        for ref in "ABC":
            send(socket, {"seed": ord(ref)}, ref)
        assert source.begun.acquire(timeout=10)
        send(socket, None, "B", "cancel")
        assert until_end(socket, "B")[-1]["type"] == "cancelled"
        source.go.release(2)
        assert until_end(socket, "C")[-1]["type"] == "done"
        assert source.order == [ord("A"), ord("C")]


def test_a_page_that_goes_takes_its_requests_along():
    source = Slow()
    with client(source) as opened:
        with connect(opened) as gone:
            send(gone, {"seed": 1, "steps": 50}, "A")
            assert source.begun.acquire(timeout=10)
            send(gone, {"seed": 2}, "B")
            json.loads(gone.receive_text())
        with connect(opened) as socket:
            send(socket, {"seed": 3, "steps": 1})
            source.go.release(2)
            assert until_end(socket)[-1]["type"] == "done"
        assert source.order[-1] == 3 and source.go.acquire(timeout=1) is False


def test_the_queue_and_the_page_have_limits():
    source = Slow()
    with client(source, queue=2, each=3) as opened, connect(opened) as first, connect(opened) as second:
        send(first, {}, "A")
        assert source.begun.acquire(timeout=10)
        for ref in "BCD":
            send(first, {}, ref)
        assert "3 requests at a time" in until_end(first, "D")[-1]["message"]
        send(second, {}, "E")
        assert "2 requests are waiting already" in until_end(second, "E")[-1]["message"]
        send(first, {}, "A")
        assert "isn't done" in until_end(first, "A")[-1]["message"]
        send(first, None, "A", "cancel")  # what is cancelled doesn't count, though it hasn't ended
        send(first, None, "B", "cancel")
        settle(first)
        send(first, {}, "D")
        source.go.release(10)
        assert until_end(first, "D")[-1]["type"] == "done"


def test_pages_have_a_limit():
    with client(Slow(), clients=1) as opened, connect(opened):
        with connect(opened) as second, pytest.raises(WebSocketDisconnect) as told:
            second.receive_text()
        assert told.value.code == 1013 and "1 pages are connected" in told.value.reason


def test_old_results_make_room(digits_source):
    with client(digits_source, results=1) as opened:
        first, second = (ask(opened, num=1, steps=1, seed=seed)["job"] for seed in (1, 2))
        answer = opened.get(f"/api/results/{first}/npz")
        assert answer.status_code == 404 and "make them again" in answer.json()["error"]
        assert opened.get(f"/api/results/{second}/npz").status_code == 200


# Errors


def test_errors_of_a_request_are_told_in_words(digits_source):
    with client(digits_source) as opened:
        for told, words in [
            ({"steps": 0}, "steps must be from 1 to 1000"),
            ({"labels": ["x"]}, "unknown class 'x'"),
            ({"solver": "hein"}, "Did you mean 'heun'"),
            ({"guidance": 1e29, "solver": "euler", "steps": 30}, "NaN or infinity"),
        ]:
            message = ask(opened, num=1, **told)
            assert message["type"] == "error" and words in message["message"]


def test_what_is_inside_stays_inside(caplog):
    source = Slow(RuntimeError("secret /home/someone"))
    source.go.release(10)
    with client(source) as opened, caplog.at_level(logging.ERROR):
        told = ask(opened)
        assert told == {"type": "error", "ref": "A", "message": "the server failed at this request; its log says why"}
        source.fault = RuntimeError("CUDA out of memory. Tried")
        assert ask(opened)["message"] == "the server ran out of memory: ask for fewer samples"
        source.fault = None
        assert ask(opened)["type"] == "done"
    assert "secret" in caplog.text


def test_a_fault_outside_of_a_request_tells_nothing(monkeypatch):
    source = Slow()
    source.go.release(1)
    with client(source) as opened:
        job = ask(opened)["job"]
        monkeypatch.setattr(source, "files", lambda made: 1 / 0)
        answer = opened.get(f"/api/results/{job}/txt")
        assert answer.status_code == 500 and answer.json() == {
            "error": "the server failed at this request; its log says why"
        }


BAD = [
    "", "x", "[]", "3", "null", "{}", '{"type": "sample"}', '{"type": "boo", "ref": "A"}', '{"ref": 3}', "[" * 5000,
    '{"type": "sample", "ref": "A"}', '{"type": "sample", "ref": "A", "settings": {"num": 1e999}}', "9" * 5000,
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=30) | st.sampled_from(BAD), min_size=1, max_size=4))
def test_bad_messages_are_answered_and_the_page_stays_connected(slow_client, texts):
    with connect(slow_client) as socket:
        for text in texts:
            socket.send_text(text)
            told = json.loads(socket.receive_text())
            assert told["type"] == "error" and told["message"]
        send(socket, {"num": 1})
        assert until_end(socket)[-1]["type"] == "done"


@pytest.fixture(scope="module")
def slow_client():
    source = Slow()
    source.go.release(100_000)
    with client(source) as opened:
        yield opened


def test_bytes_and_long_messages(slow_client):
    with connect(slow_client) as socket:
        socket.send_bytes(b"\xff\xfe")
        assert "can't be read" in json.loads(socket.receive_text())["message"]
        socket.send_text("x" * 70_000)
        assert "65536 characters here, got 70000" in json.loads(socket.receive_text())["message"]
        send(socket, None, "unknown", "cancel")  # nothing to cancel is no error
        send(socket, {"num": 1})
        assert until_end(socket)[-1]["type"] == "done"
