"""Runs that are served, one of each kind of data, each trained once."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from served import SMALL, open_run, train

from condiff.data import bouncing_ball, hourly, write_phantoms
from condiff.video import write_frames


@pytest.fixture(autouse=True)
def every_step_is_shown(monkeypatch):
    """However slow the machine is at the moment."""
    monkeypatch.setattr("condiff.web.watching.QUICK", 60.0)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return train(tmp_path_factory.mktemp("web") / "digits", "digits")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web-text")
    (folder / "corpus.txt").write_text("the cat sat on the mat, and the dog sat on the log. " * 40)
    return train(folder / "run", "text", folder / "corpus.txt", length=24)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Restoring: dark pictures to light ones."""
    folder, rng = tmp_path_factory.mktemp("web-pairs"), np.random.default_rng(0)
    for part in ("dark", "light"):
        (folder / part).mkdir()
    for i in range(20):
        pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "light" / f"{i:02d}.png")
        Image.fromarray(pixels // 2).save(folder / "dark" / f"{i:02d}.png")
    return train(folder / "run", "pairs", folder / "dark", folder / "light")


@pytest.fixture(scope="session")
def series(tmp_path_factory):
    """Waves told a height and a spectrum."""
    folder, rng = tmp_path_factory.mktemp("web-series"), np.random.default_rng(0)
    height, spectrum = rng.uniform(1, 3, 40).astype(np.float32), rng.uniform(0, 1, (40, 3)).astype(np.float32)
    x = height[:, None, None] * np.sin(np.linspace(0, 6, 16))[None, :, None].repeat(2, 2).astype(np.float32)
    np.savez(folder / "waves.npz", x=x, height=height, spectrum=spectrum)
    return train(folder / "run", "arrays", folder / "waves.npz", range="standardise", cond=["height", "spectrum"])


@pytest.fixture(scope="session")
def points(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web-points")
    np.savez(folder / "moons.npz", x=np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    tiny = ("network.width=16", "network.depth=1", "training.batch=16", "training.steps=1")
    return train(folder / "run", "arrays", folder / "moons.npz", settings=tiny, range="standardise")


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web-volumes")
    scans = write_phantoms(folder / "scans", 6, side=12)
    tiny = ("network.width=8", "network.multipliers=[1,1]", "sampler.steps=2", *SMALL[3:])
    how = {"target": "flair", "condition": ["t1", "t2"]}
    return train(folder / "run", "volumes", scans, settings=tiny, method="cwdm", **how)


@pytest.fixture(scope="session")
def balls(tmp_path_factory):
    """Clips that are continued from their first frame, in chunks."""
    folder = tmp_path_factory.mktemp("web-balls")
    for i, clip in enumerate(bouncing_ball(8, frames=7, side=16).batch(range(8))["x"]):
        write_frames(clip, folder / "clips" / f"{i}.gif")
    tiny = (*SMALL[:3], "training.batch=2", "training.steps=2", "sampler.steps=2")
    how = {"given": 1, "frames": 7, "channels": 1}
    return train(folder / "run", "video", folder / "clips", settings=tiny, method="ca2-vdm", **how)


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """Windows of a table of series."""
    folder = tmp_path_factory.mktemp("web-load")
    table = pd.DataFrame({one.item: one.values for one in hourly(2, 300)}, index=hourly(2, 300)[0].times())
    table.rename_axis("timestamp").to_csv(folder / "load.csv")
    tiny = ("network.width=8", "network.states=4", "sampler.steps=4", "training.steps=2")
    how = {"freq": "H", "horizon": 6, "context": 24, "lags": [24]}
    return train(folder / "run", "series", folder / "load.csv", settings=tiny, **how)


@pytest.fixture(scope="session")
def digits_source(digits):
    return open_run(digits)
