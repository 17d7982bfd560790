"""Two processes train tokens, volumes and clips as one process does."""

import kinds_training
import pytest
import torch
from two_processes import assert_close_runs, lines, run_two

from condiff.files import read_tensors


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The runs of one process, and those of two."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    kinds_training.train(alone)
    run_two("import sys, kinds_training; kinds_training.train_together(sys.argv[1])", together)
    return alone, together


@pytest.mark.parametrize("name", kinds_training.NAMES)
def test_two_processes_train_as_one(roots, name):
    alone, together = (root / name for root in roots)
    assert_close_runs(alone, together)
    assert [line["step"] for line in lines(together)] == list(range(1, 7))
    begun = kinds_training.parts(name)[0].state_dict()
    trained = read_tensors(together / "model.safetensors")[0]
    assert any(not torch.allclose(value, begun[key], atol=1e-3) for key, value in trained.items())
