"""Settings and default recipes: what is accepted, and what is refused in a line."""

import json
import math

import pytest

from condiff.conditions import Label
from condiff.config import from_config, to_config, tree
from condiff.errors import BadValue
from condiff.methods import settings
from condiff.methods.edm import recipe
from condiff.methods.experiment import Facts
from condiff.methods.recipe import default_network, default_training, embedding_for
from condiff.methods.runs import DataRequest, Request
from condiff.networks import DiTConfig, MLPConfig
from condiff.sampling import Heun

PLAIN = recipe(Facts((1, 8, 8), {"label": Label(10)}, 0.5, 1000))


def test_infinity_survives_json():
    """The EDM sampler's churn ends at infinity; strict JSON has no word for it."""
    stored = json.loads(json.dumps(to_config(PLAIN), allow_nan=False))
    assert from_config(stored).sampler.solver.churn_max == math.inf
    assert "churn_max=inf" in tree(stored)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("network.width", "abc", "is a number such as 96"),
        ("training.lr", True, "is a number"),
        ("training.betas", 0.9, "is a list such as"),
        ("process", "edm", "is a part"),
        ("sampler.solver", "hoin", "Did you mean 'heun'"),
        ("sampler.solver", 3, "is a part"),
    ],
)
def test_values_of_another_sort_are_refused(key, value, message):
    with pytest.raises(BadValue, match=message):
        settings.apply(PLAIN, {key: value})


def test_an_unknown_key_names_fields_of_that_name_further_down():
    with pytest.raises(BadValue, match=r"Did you mean 'training.steps' or 'sampler.steps'\?"):
        settings.apply(PLAIN, {"steps": 5})
    with pytest.raises(BadValue, match=r"Did you mean 'network.width'"):
        settings.apply(PLAIN, {"network.widht": 5})


def test_short_forms():
    changed = settings.apply(PLAIN, {"sampler.solver": "heun", "training.ema": 0.9})
    assert changed.sampler.solver == Heun() and changed.training.ema == (0.9,)


@pytest.mark.parametrize(
    ("shape", "patch", "tokens"),
    [
        ((1, 8, 8), 2, 16),
        ((3, 32, 32), 2, 256),
        ((3, 64, 64), 4, 256),
        ((1, 28, 28), 2, 196),
        ((3, 33, 33), 3, 121),
        ((3, 512, 512), 16, 1024),
        ((150, 1), 2, 75),
        ((251, 3), 1, 251),
        ((1, 16, 16, 16), 4, 64),
    ],
)
def test_the_default_network_can_be_built_and_cuts_the_right_axes(shape, patch, tokens):
    config = default_network(shape, {})
    assert isinstance(config, DiTConfig) and config.patch == patch
    sides = shape[:1] if len(shape) == 2 else shape[1:]
    assert math.prod(s // patch for s in sides) == tokens and not any(s % patch for s in sides)
    if tokens <= 256:
        config.build()


def test_vectors_get_an_mlp_and_awkward_sides_a_reason():
    assert isinstance(default_network((5,), {}), MLPConfig)
    with pytest.raises(BadValue, match="resize, crop or pad"):
        default_network((1, 91, 109, 91), {})
    with pytest.raises(BadValue, match="no default network"):
        default_network((2, 2, 2, 2, 2), {})
    assert default_training((3, 32, 32), 1000).validate_every > 0


def test_a_label_beyond_the_classes_is_refused():
    import torch

    assert embedding_for("label", torch.tensor([0, 2]), 3) == Label(3)
    with pytest.raises(BadValue, match="no default network takes"):
        embedding_for("label", torch.tensor([0, 7]), 3)


def test_a_short_run_still_reaches_its_learning_rate():
    """Warm-up is a tenth of a shorter run, unless it was asked for."""
    import torch

    from condiff.data import TensorData

    data = TensorData(torch.rand(12, 3, 32, 32))

    def training(*words):
        request = Request(data=DataRequest(source="images"), overrides={"training.steps": 40}, settings=words)
        return request.recipe(data).training

    assert training().warmup == 4
    assert training("training.warmup=30").warmup == 30
