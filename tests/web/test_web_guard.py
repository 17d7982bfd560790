"""Who may talk to the server: hosts, origins, tokens; over HTTP and over the WebSocket alike."""

import pytest
from served import HERE, Slow, client, connect
from starlette.websockets import WebSocketDisconnect

from condiff.errors import BadValue
from condiff.web import Guard
from condiff.web.guard import hostname, is_loopback

TOKEN = "a-token-that-is-long"
OPEN = Guard.of("127.0.0.1", 8000)
LOCKED = Guard.of("0.0.0.0", 8000, TOKEN)


def refused(opened, headers):
    """Whether a WebSocket is refused before it is accepted."""
    try:
        with connect(opened, headers):
            return False
    except WebSocketDisconnect:
        return True


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:8000"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "evil.example@127.0.0.1"}, 421),
        ({"host": "192.168.1.5:8000"}, 421),
        ({"host": ""}, 421),
        ({"origin": f"http://{HERE}"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"host": "localhost:8000", "origin": f"http://{HERE}"}, 403),
    ],
)
def test_hosts_and_origins(headers, status):
    with client(Slow(), guard=OPEN) as opened:
        answer = opened.get("/api/about", headers=headers)
        assert answer.status_code == status
        assert status == 200 or set(answer.json()) == {"error"}
        assert refused(opened, headers) == (status != 200)


def test_the_token_opens_the_page_and_the_socket():
    with client(Slow(), guard=LOCKED) as opened:
        page = opened.get("/")
        assert page.status_code == 401 and "needs its token" in page.text and TOKEN not in page.text
        assert opened.get("/api/about").json() == {
            "error": "this needs the token: open the address that the server printed"
        }
        assert opened.get("/api/about?token=" + TOKEN).status_code == 401  # only the page takes it from an address
        assert opened.get("/app.css").status_code == 200 and opened.get("/app.js").status_code == 401
        assert opened.post("/api/pictures", content=b"x").status_code == 401
        assert refused(opened, {}) and refused(opened, {"authorization": "Bearer wrong"})
        assert opened.get("/?token=wrong", follow_redirects=False).status_code == 401
        led = opened.get("/?token=" + TOKEN, follow_redirects=False)
        assert led.status_code == 303 and led.headers["location"] == "/"
        cookie = led.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and cookie.startswith("condiff-8000=")
        assert opened.get("/").status_code == 200 and opened.get("/api/about").status_code == 200
        assert not refused(opened, {"cookie": f"condiff-8000={TOKEN}"})


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer  {TOKEN}"])
def test_scripts_bring_the_token_in_a_header(given):
    with client(Slow(), guard=LOCKED) as opened:
        assert opened.get("/api/about", headers={"authorization": given}).status_code == 200
        assert not refused(opened, {"authorization": given})
        other = {"authorization": given, "origin": "http://evil.example"}
        assert opened.get("/api/about", headers=other).status_code == 403 and refused(opened, other)


@pytest.mark.parametrize("given", ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ü" * 20, "\0" * 20])
def test_wrong_tokens(given):
    assert not LOCKED.admits(given) and not LOCKED.admits(None) and LOCKED.admits(TOKEN)


def test_tokens_are_compared_in_constant_time(monkeypatch):
    seen = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: seen.append((a, b)) or a == b)
    assert LOCKED.admits(TOKEN) and not LOCKED.admits("x")
    assert seen == [(TOKEN.encode(), TOKEN.encode()), (b"x", TOKEN.encode())]


def test_an_exposed_server_needs_a_token_and_takes_addresses_but_no_names():
    with pytest.raises(BadValue, match="a token is needed"):
        Guard.of("0.0.0.0", 8000)
    for short in ("short", "ümlaut-" * 4, "new\nline" * 4):
        with pytest.raises(BadValue, match="at least 12"):
            Guard.of("127.0.0.1", 8000, short)
    assert LOCKED.knows("192.168.1.5:8000") and LOCKED.knows("[fe80::1]:8000") and not LOCKED.knows("evil.example")
    assert Guard.of("::", 1, TOKEN, ["Proxy.Example"]).knows("proxy.example")


def test_headers_keep_browsers_careful():
    with client(Slow()) as opened:
        for path in ("/", "/app.js", "/api/about", "/nowhere"):
            headers = opened.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.b:1", "a.b"),
        ("A.B", "a.b"),
        ("[::1]:2", "::1"),
        ("a@b", None),
        ("a/b", None),
        ("[", None),
        (None, None),
        ("a b", None),
    ],
)
def test_names_of_hosts(host, name):
    assert hostname(host) == name


def test_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.5.5.5", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.1", "example.org", "")))
