"""What commands say while they work: a line once in a while, and nothing where the work is short."""

import pytest
import torch

import condiff as cd
from condiff.cli.output import Progress, summary
from condiff.methods import report


class Clock:
    """A second a look."""

    def __init__(self):
        self.now = -1.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_a_line_once_in_a_while_with_the_time_that_is_left(capsys):
    progress = Progress(every=10.0, clock=Clock())
    for step in range(1, 31):
        progress(step, 30)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and [line.split("  ")[0] for line in lines] == ["step 10/30", "step 20/30"]
    assert lines[1].endswith("0:00:10 left")  # a second a step


def test_short_work_is_silent(capsys):
    progress = Progress(every=10.0, clock=Clock())
    for step in range(1, 10):
        progress(step, 9)
    assert capsys.readouterr().err == ""


def test_short_trajectories_are_silent_however_many_there_are(capsys):
    progress = Progress(every=10.0, clock=Clock())
    for _ in range(9):
        for step in range(1, 6):
            progress(step, 5)
    assert capsys.readouterr().err == ""


@pytest.fixture
def oracle():
    return cd.oracles.mixture(cd.process.Gaussian(cd.process.Rectified()), [[-1.0], [1.0]], stds=0.5)


def test_samplers_call_behind_every_step(oracle):
    seen = []
    how = {"num": 2, "solver": cd.DDIM(), "steps": 4, "seed": 0}
    x = cd.sample(oracle, **how, progress=lambda done, steps: seen.append((done, steps)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(x, cd.sample(oracle, **how))


def test_figures_stand_in_one_column_however_long_their_names(tmp_path):
    text = summary({"nfe": 4, "bigram_bits_per_character": 3.5}, tmp_path)
    first, second = [line for line in text.splitlines() if line.startswith("  ")][:2]
    assert first.index("4") == second.index("3.5")


@pytest.mark.parametrize(
    ("metrics", "note"),
    [
        ({"crps": 0.1, "samples": 9, "nfe": 4}, None),
        ({"samples": 9, "nfe": 4}, "Too few held-out samples"),
        ({"entropy": 4.0, "entropy_floor": 5.0}, "for real samples"),
    ],
)
def test_what_the_report_says_of_its_columns_is_so(tmp_path, metrics, note):
    """Forecasts aren't compared by distances between distributions: nothing was too few for them."""
    empty = {"title": "", "subtitle": "", "pictures": [], "data": "", "config": "", "commands": []}
    page = report.write(tmp_path / "report.html", metrics=metrics, **empty).read_text()
    if note is None:
        assert "Too few" not in page and "real samples" not in page
    else:
        assert note in page
