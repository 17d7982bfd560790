"""The server itself: addresses, ports, starting and stopping, on the command line."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as socket_to

from condiff.cli.main import main
from condiff.errors import BadFile, BadValue
from condiff.web import Limits, Uploads, open_source
from condiff.web.server import address_of, listen


def test_a_port_in_use_is_said(digits, capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadValue, match=rf"can't listen on 127.0.0.1, port {port} .* --port 0"):
            listen("127.0.0.1", port)
        assert main(["serve", str(digits), "--port", str(port)]) == 2
        assert "choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [("127.0.0.1", 70000, "0 .. 65535"), ("no-such-host.invalid", 0, "no such host"), ("8.8.8.8", 0, "can't listen")],
)
def test_addresses_that_can_not_be_had(host, port, words):
    with pytest.raises(BadValue, match=words):
        listen(host, port)


def test_a_free_port():
    with listen("localhost", 0) as bound:
        assert bound.getsockname()[1] > 0


@pytest.mark.parametrize(
    ("host", "token", "url"),
    [
        ("127.0.0.1", None, "http://127.0.0.1:8000/"),
        ("::1", None, "http://[::1]:8000/"),
        ("0.0.0.0", "secret-secret", f"http://{socket.gethostname()}:8000/?token=secret-secret"),
    ],
)
def test_the_address_that_is_shown(host, token, url):
    assert address_of(host, 8000, token) == url


@pytest.mark.parametrize("target", ["/nowhere/at/all", "nowhere", "../x/y", "a b/c"])
def test_what_is_not_there_is_said(target):
    with pytest.raises(BadFile, match="no such folder"):
        open_source(target, Uploads(Limits()), Limits())


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "error:" in capsys.readouterr().err


def test_bad_options(digits, capsys):
    assert main(["serve", str(digits), "--port", "0", "--token", "short"]) == 2
    assert main(["serve", str(digits), "--port", "0", "--most-steps", "0"]) == 2
    assert "at least 12" in capsys.readouterr().err


def test_from_start_to_ctrl_c(digits):
    """A process that serves on all addresses, and so asks for the token that it shows."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "condiff.cli.main",
        "serve",
        str(digits),
        "--port",
        "0",
        "--host",
        "0.0.0.0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://[^:]+:(\d+)/\?token=(\S+)", line)
        assert found, line + process.stderr.read()
        port, token = found[1], found[2]
        headers = {"authorization": f"Bearer {token}"}
        here = f"127.0.0.1:{port}"
        with httpx.Client(base_url=f"http://{here}", timeout=20) as client:
            assert client.get("/api/about", headers=headers).json()["kind"] == "run"
            assert client.get("/api/about", headers={"host": "evil.example", **headers}).status_code == 421
            assert client.get("/").status_code == 401
        with (
            pytest.raises(InvalidStatus),
            socket_to(f"ws://{here}/api/socket", origin="http://evil.example", additional_headers=headers),
        ):
            pass
        with socket_to(f"ws://{here}/api/socket", additional_headers=headers) as page:
            page.send('{"type": "sample", "ref": "A", "settings": {"num": 1, "steps": 1000}}')
            assert '"accepted"' in page.recv(timeout=20)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        assert process.stdout.read().endswith("stopped\n")
        assert "Traceback" not in process.stderr.read()
