"""Running a command in this process, as the terminal would."""

import numpy as np
from PIL import Image

from condiff.cli.main import main

# A network that trains in no time.
SMALL = ["--set", "network.width=16", "--set", "network.depth=1"]
TINY = [*SMALL, "--set", "network.heads=2", "--set", "training.batch=16"]


def run(capsys, *argv, code=0):
    """What a command printed; it has to end with the exit code."""
    assert main([str(a) for a in argv]) == code
    return capsys.readouterr()


def noise_pictures(folder, seed, count=12, side=16):
    """A new folder of pictures p0.png, p1.png, ... of random pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / f"p{i}.png")
    return folder
