"""Applications around a model, and talking to them as a page does."""

import json
import threading
from contextlib import contextmanager
from pathlib import Path

import torch
from starlette.testclient import TestClient

from condiff.methods.drawn import Drawing
from condiff.methods.runs import DataRequest, Request, prepare
from condiff.web import Guard, Limits, Made, Settings, Source, Uploads, build_app
from condiff.web.run_source import RunSource
from condiff.web.views import pictures
from condiff.web.worker import Job

HERE = "127.0.0.1:8000"
SMALL = ("network.width=16", "network.depth=1", "network.heads=2", "training.batch=16", "training.steps=8")
LAST = ("done", "cancelled", "error")


def train(folder: Path, source: str, *paths: Path, settings=SMALL, method=None, **options) -> Path:
    """A run of few steps, without its evaluation."""
    data = DataRequest(source=source, paths=tuple(map(str, paths)), options=options)
    prepare(Request(data=data, folder=folder, settings=settings, method=method)).train(quiet=True)
    return folder


def open_run(folder: Path, **limits) -> RunSource:
    return RunSource(folder, Uploads(Limits(**limits)), Limits(**limits), device="cpu")


@contextmanager
def client(source: Source, *, guard: Guard | None = None, **limits):
    """A client of a served model; ``uploads`` of the source are those of the application."""
    bounds = Limits(**limits)
    uploads = getattr(source, "uploads", None) or Uploads(bounds)
    app = build_app(source, guard or Guard.of("127.0.0.1", 8000), bounds, uploads)
    with TestClient(app, base_url=f"http://{HERE}", raise_server_exceptions=False) as opened:
        yield opened


def connect(opened: TestClient, headers=None):
    """A page's WebSocket."""
    return opened.websocket_connect(f"ws://{HERE}/api/socket", headers=dict(headers or {}))


def send(socket, settings, ref="A", kind="sample"):
    socket.send_text(json.dumps({"type": kind, "ref": ref, "settings": settings}))


def until_end(socket, ref="A"):
    """All messages about a request, the last one included."""
    heard = []
    while not heard or heard[-1]["type"] not in LAST:
        message = json.loads(socket.receive_text())
        if message["ref"] == ref:
            heard.append(message)
    return heard


def settle(socket):
    """Wait until everything that was sent has been taken."""
    send(socket, None, "settled", "nothing")
    until_end(socket, "settled")


def ask(opened: TestClient, **settings):
    """The last message about one request."""
    with connect(opened) as socket:
        send(socket, settings)
        return until_end(socket)[-1]


def make(source: Source, **settings):
    """``(made, steps)`` of a source without a server."""
    heard = []
    made = source.make(Settings(**settings), Job(Settings(**settings), heard.append))
    return made, heard


class Slow(Source):
    """Makes grey pictures in steps that wait for ``go``; ``begun`` says that a request runs.

    ``fault`` is raised in place of the first step.
    """

    shape = (1, 2, 2)
    viewer = staticmethod(pictures)

    def __init__(self, fault: Exception | None = None) -> None:
        self.go, self.begun, self.fault = threading.Semaphore(0), threading.Semaphore(0), fault
        self.order: list[int] = []

    def about(self):
        own = {"solver": "slow", "steps": 1, "guidance": None, "num": 1}
        names = {"title": "slow", "name": "slow", "facts": [], "takes": ["steps"], "solvers": ["slow"]}
        return {**names, "own": own, "classes": [], "conditions": []}

    def make(self, settings, job):
        self.order.append(settings.seed)
        self.begun.release()
        for index in range(settings.steps or 1):
            assert self.go.acquire(timeout=20)
            job.check()
            if self.fault is not None:
                raise self.fault
            job.tell({"type": "step", "index": index + 1, "steps": settings.steps, "first": 0, "view": None})
        x = torch.zeros(settings.num, *self.shape)
        return Made(Drawing(x, None, None, None, 1, 0.1, None), settings, {"nfe": 1, "seconds": 0.1})

    def files(self, made):
        return {"txt": lambda told: f"{len(made.x)} {told}".encode()}
