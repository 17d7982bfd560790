"""Running the application: which model, which address, until Ctrl-C."""

from __future__ import annotations

import logging
import secrets
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from condiff.errors import BadValue, require_extra
from condiff.interop.loading import is_pipeline, load_pipeline
from condiff.methods.runs import check_device, default_device
from condiff.web.app import build_app
from condiff.web.guard import Guard, is_loopback
from condiff.web.limits import Limits
from condiff.web.pipeline_source import PipelineSource
from condiff.web.run_source import RunSource
from condiff.web.source import Source
from condiff.web.uploads import Uploads

PATIENCE = 5  # seconds that open connections have when the server stops


def open_source(
    target: str,
    uploads: Uploads,
    limits: Limits,
    *,
    weights: str = "ema",
    device: str | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    dtype: str | None = None,
) -> Source:
    """A run folder, a pipeline folder, or a pipeline of the Hub.

    Args:
        weights: of a run.
        device: the machine's fastest by default.
        dtype: of a pipeline's weights.
        size, frames: of a pipeline's samples; by default those that it was trained on.

    Raises:
        BadFile: none of these.
        BadValue: a size or a dtype for a run, which has one.
    """
    if not is_pipeline(target, "is served"):
        if (size, frames, dtype) != (None, None, None):
            raise BadValue(f"a run has a size and a dtype: leave --size, --frames and --dtype out for {target}")
        return RunSource(Path(target), uploads, limits, weights=weights, device=device)
    place = check_device(device or default_device())
    pipe = load_pipeline(target, dtype).to(place)
    return PipelineSource(pipe, target, uploads, limits, size=size, frames=frames)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes a free one.

    Raises:
        BadValue: an address that isn't this machine's, a port in use or out of range.
    """
    if not 0 <= port <= 65535:
        raise BadValue(f"a port lies in 0 .. 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise BadValue(f"no such host: {host}") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen()
    except OSError as error:
        bound.close()
        raise BadValue(
            f"can't listen on {host}, port {port} ({error.strerror}): choose another --port, or --port 0 for a free one"
        ) from error
    return bound


def address_of(host: str, port: int, token: str | None) -> str:
    """The address to open, with the token."""
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def serve(
    target: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    names: tuple[str, ...] = (),
    limits: Limits | None = None,
    weights: str = "ema",
    device: str | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    dtype: str | None = None,
    browse: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a model until Ctrl-C.

    Args:
        target: a run folder, a pipeline folder, or a pipeline's name on the Hub.
        host: other than this machine's own addresses, a token is needed: one is made where none is given.
        names: other host names that the server goes by.
        weights, device, size, frames, dtype: see :func:`open_source`.
        browse: open the page in a browser.
        say: where lines for a person go.

    Raises:
        BadValue: an address that can't be had, a token that can be guessed.
        BadFile: nothing that can be served.
    """
    uvicorn = require_extra("uvicorn", "web")
    require_extra("websockets", "web")
    limits = limits or Limits()
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    with listen(host, port) as bound:
        port = bound.getsockname()[1]
        guard, uploads = Guard.of(host, port, token, names), Uploads(limits)
        how = {"weights": weights, "device": device, "size": size, "frames": frames, "dtype": dtype}
        source = open_source(target, uploads, limits, **how)
        server = _server(uvicorn, build_app(source, guard, limits, uploads), limits)
        url = address_of(host, port, token)
        say(f"{source.about()['title']}: {url}  (Ctrl-C stops)")
        if browse:
            webbrowser.open(url)
        with suppress(KeyboardInterrupt):  # which uvicorn hands on when it has stopped, unless signals are ignored
            server.run(sockets=[bound])
        say("stopped")


def _server(uvicorn: Any, app: Any, limits: Limits) -> Any:
    logging.getLogger("condiff").setLevel(logging.INFO)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses hold the token
        ws="websockets-sansio",
        ws_max_size=4 * limits.message,  # bytes; a message's characters are counted on arrival
        timeout_graceful_shutdown=PATIENCE,
        server_header=False,
        proxy_headers=False,
    )
    return uvicorn.Server(config)
