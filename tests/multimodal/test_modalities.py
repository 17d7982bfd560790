"""What carries several kinds of data: encoders, channels, masks, heads; what doesn't make one latent is refused."""

import copy
import math

import pytest
import torch

import condiff as cd
from condiff.conditions import Conditions
from condiff.config import from_config, to_config
from condiff.errors import BadType, BadValue, Incompatible
from condiff.multimodal import Image, Label, Modalities, MultiModal, MultiModalConfig, Values, Vector
from condiff.networks import MLP, DiT, DiTConfig, UNet
from condiff.process import Bridge, Cosine, Discrete, Driven, Gaussian

PICTURE, CHAIN = (1, 8, 8), Driven(schedule=Discrete.ddpm(50, 0.002, 0.4))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Encoders


def test_codes_have_mean_0_and_variance_1_over_the_classes():
    table = Label(10).encoder(PICTURE)(torch.arange(10)).double()
    torch.testing.assert_close(table.mean(0), torch.zeros(PICTURE, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(table.var(0, correction=0), torch.ones(PICTURE, dtype=torch.float64), atol=1e-5, rtol=0)
    again, other = Label(10).encoder(PICTURE).table, Label(10, seed=1).encoder(PICTURE).table
    assert torch.equal(again, table.float())
    assert not torch.allclose(other, again)


def test_projections_of_white_vectors_have_variance_1():
    """Exactly: a row of length 1 times unit variances."""
    encoder = Vector(20, mean=3.0, std=2.0).encoder(PICTURE)
    rows = encoder(2.0 * torch.eye(20) + 3.0).flatten(1)
    torch.testing.assert_close(rows.square().sum(0), torch.ones(64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder(torch.full((1, 20), 3.0)), torch.zeros(1, *PICTURE), atol=1e-6, rtol=0)


def test_what_heads_expect_is_the_mean_of_the_codes():
    encoder, logits = Label(4).encoder((3,)), normal(5, 4)
    expected = sum(logits.softmax(-1)[:, k, None] * encoder(torch.full((5,), k)) for k in range(4))
    torch.testing.assert_close(encoder.expected(logits), expected)


def test_nothing_of_an_encoder_is_learned():
    both = Modalities({"image": Image(*PICTURE), "label": Label(10), "clip": Vector(16)})
    assert not list(both.parameters())
    assert {"encoders.label.table", "encoders.clip.rows"} <= set(both.state_dict())


# The aggregate


def test_pictures_lie_beside_each_other_and_labels_on_all():
    pair = Modalities({"a": Image(1, 8, 8, std=1.0), "b": Image(2, 8, 8, std=1.0), "label": Label(3)}, {"b": 0.5})
    assert pair.shape == (3, 8, 8)
    x = {"a": normal(4, 1, 8, 8), "b": normal(4, 2, 8, 8, seed=1), "label": torch.tensor([0, 1, 2, 0])}
    code = pair.encoders["label"].table[x["label"]]
    torch.testing.assert_close(pair.aggregate(x), torch.cat([x["a"], 0.5 * x["b"]], 1) + code)


def test_labels_may_have_channels_of_their_own():
    both = Modalities({"image": Image(*PICTURE, std=1.0), "label": Label(10, own=2)})
    x = {"image": normal(2, *PICTURE), "label": torch.tensor([4, 5])}
    e = both.aggregate(x)
    assert both.shape == (3, 8, 8)
    assert torch.equal(e[:, :1], x["image"])
    assert torch.equal(both.own("label", 2)[0, :, 0, 0], torch.tensor([False, True, True]))


def test_series_and_vectors_have_their_own_axis_of_channels():
    assert Modalities({"a": Values((12, 2)), "b": Values((12, 3))}).shape == (12, 5)
    assert Modalities({"a": Values((4, 1, 8, 8), layout="video"), "b": Values((4, 2, 8, 8), layout="video")}).shape == (
        4,
        3,
        8,
        8,
    )
    assert Modalities({"a": Vector(3, own=True), "b": Vector(2, own=True), "label": Label(4)}).shape == (5,)
    assert Modalities({"label": Label(4), "clip": Vector(16)}, latent=(32,)).shape == (32,)


def test_what_a_mask_leaves_out_adds_nothing_and_counts_nothing():
    """NaN there is never read."""
    both = Modalities({"image": Image(*PICTURE), "label": Label(10)})
    x = {"image": normal(2, *PICTURE), "label": torch.tensor([4, 5])}
    hole = torch.ones(2, *PICTURE, dtype=torch.bool)
    hole[..., :4] = False
    mask = {"image": hole, "label": torch.tensor([True, False])}
    broken = {**x, "image": torch.where(hole, x["image"], torch.nan)}
    e = both.aggregate(broken, mask)
    assert torch.equal(e[1, ..., :4], torch.zeros(1, 8, 4))
    assert torch.equal(e[0, ..., :4], both.encoders["label"].table[4][..., :4])
    said = normal(2, *PICTURE, seed=2)
    expected = (said - x["image"] / 0.5).square()[..., 4:].flatten(1).mean(1)
    torch.testing.assert_close(both["image"].loss(said, broken["image"], hole), expected)
    nats = both["label"].loss(normal(2, 10), x["label"], mask["label"])
    assert float(nats[0]) > 0.0 == float(nats[1])
    told = both.known({"image": x["image"]}, mask={"image": hole})["image"].value
    assert float(told[..., :4].abs().max()) == 0.0


def test_a_masked_view_is_trained_beside_the_whole():
    """Masked-image training: the view's head is compared where the view is."""
    kinds = Modalities({"image": Image(*PICTURE), "view": Image(*PICTURE)})
    model = MultiModal(DiT(shape=kinds.shape, width=32, depth=1, heads=2, conditions=kinds.conditions()), CHAIN, kinds)
    x, hole = normal(8, *PICTURE), torch.rand(8, *PICTURE, generator=torch.Generator().manual_seed(0)) > 0.5
    view = torch.where(hole, x, 0.0)
    batch = {"x": {"image": x, "view": view}, "mask": {"image": torch.ones_like(hole), "view": hole}}
    losses = cd.training.MultiModalDenoising()(model, batch, rng=0)
    assert math.isfinite(float(losses.loss.detach()))
    view[~hole] = 7.0  # what isn't counted changes nothing
    again = cd.training.MultiModalDenoising()(model, batch, rng=0)
    torch.testing.assert_close(again.loss, losses.loss)


# Likelihoods and decoding


def test_log_probs_are_those_of_their_laws():
    one, x, said = Image(*PICTURE, mean=0.2, std=0.5), normal(3, *PICTURE), normal(3, *PICTURE, seed=1)
    law = torch.distributions.Normal(said.double() * 0.5 + 0.2, 0.5 * 0.1)
    torch.testing.assert_close(one.log_prob(said, x, 0.1), law.log_prob(x.double()).flatten(1).sum(1))
    logits, y = normal(3, 4), torch.tensor([0, 3, 1])
    law = torch.distributions.Categorical(logits=logits.double())
    torch.testing.assert_close(Label(4).log_prob(logits, y, 0.1), law.log_prob(y))


def test_draws_follow_the_heads_and_the_mode_is_the_most_likely():
    logits = torch.tensor([[0.0, 2.0, -1.0]]).repeat(4000, 1)
    drawn = Label(3).decode(logits, cd.random.as_source(0), 0.1)
    share = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(share, logits[0].softmax(0), atol=0.03, rtol=0)
    assert Label(3).decode(logits, None, 0.1).unique().tolist() == [1]
    one, said = Image(*PICTURE, mean=0.2, std=0.5), torch.zeros(200, *PICTURE)
    x = one.decode(said, cd.random.as_source(0), 0.1)
    assert float(x.mean()) == pytest.approx(0.2, abs=0.003)
    assert float(x.std()) == pytest.approx(0.05, rel=0.05)
    torch.testing.assert_close(one.decode(one.standard(x), None, 0.1), x)


# Networks


NETWORKS = {
    "dit": lambda kinds: DiT(shape=kinds.shape, width=32, depth=1, heads=2, conditions=kinds.conditions()),
    "unet": lambda kinds: UNet(shape=kinds.shape, width=16, conditions=kinds.conditions()),
    "mlp": lambda kinds: MLP(shape=kinds.shape, width=32, depth=1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_read_every_backbone(name):
    kinds = Modalities({"a": Image(1, 8, 8), "b": Image(2, 8, 8), "label": Label(10), "clip": Vector(16)})
    model = MultiModal(NETWORKS[name](kinds), CHAIN, kinds)
    said = model.said(model(normal(4, 3, 8, 8), 0.5))
    shapes = {n: tuple(v.shape[1:]) for n, v in said.items()}
    assert shapes == {"a": (1, 8, 8), "b": (2, 8, 8), "label": (10,), "clip": (16,)}
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(normal(4, 3, 8, 8), 0.5).noise, model(normal(4, 3, 8, 8), 0.5).noise)


def test_places_of_a_head_are_those_of_the_picture():
    """A change of one corner's features changes that corner of what is said alone."""
    kinds = Modalities({"image": Image(1, 8, 8)})
    for network in (DiT(shape=(1, 8, 8), width=32, depth=1, heads=2), UNet(shape=(1, 8, 8), width=16)):
        model = MultiModal(network, CHAIN, kinds)
        head = model.heads["image"]
        head.output.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        hidden = network.begin(normal(1, 1, 8, 8), torch.tensor([0.5]))
        for _, layer in network.layers():
            network.step(layer, hidden)
        features = network.features(hidden)
        changed = features.clone()
        changed[:, 0] += normal(features.shape[2])
        away = (head(changed, hidden, network) - head(features, hidden, network)).detach().abs()[0, 0]
        assert float(away[0, 0]) > 0.0
        assert float(away[2:].max()) == float(away[:, 2:].max()) == 0.0


def test_models_are_stored_and_opened(tmp_path):
    kinds = Modalities({"image": Image(*PICTURE), "label": Label(10)}, {"label": 0.5})
    model = MultiModal(NETWORKS["dit"](kinds), CHAIN, kinds, target="v")
    from condiff.model_files import save_model

    save_model(tmp_path, model)
    back = cd.load(tmp_path, "raw")
    z = normal(2, *PICTURE)
    assert torch.equal(back(z, 0.3).x0, model.eval()(z, 0.3).x0)
    assert back.modalities.weights == {"image": 1.0, "label": 0.5}


def test_configurations_round_trip():
    network = DiTConfig(shape=PICTURE, width=32, depth=1, heads=2)
    config = MultiModalConfig(network=network, modalities={"image": Image(*PICTURE), "label": Label(10)})
    assert from_config(to_config(config)) == config
    assert config.build().modalities.shape == PICTURE


# Refusals


BAD = [
    ({}, {}, BadValue, "at least one"),
    ({"image": Image(*PICTURE), "other": Image(1, 4, 4)}, {}, Incompatible, "beside"),
    ({"image": Image(*PICTURE), "vector": Vector(3, own=True)}, {}, Incompatible, "beside"),
    ({"label": Label(10)}, {}, Incompatible, "latent="),
    ({"image": Image(*PICTURE), "other": Image(*PICTURE, own=False)}, {}, Incompatible, "mixed=True"),
    ({"image": Image(*PICTURE)}, {"latent": (2, 8, 8)}, Incompatible, "latent"),
    ({"image": Image(*PICTURE)}, {"weights": {"image": 0.0}}, BadValue, "sum to 0"),
    ({"image": Image(*PICTURE)}, {"weights": {"image": -1.0}}, BadValue, ">= 0"),
    ({"image": Image(*PICTURE)}, {"weights": {"imgae": 1.0}}, BadValue, "image"),
    ({"image": cd.conditions.Map(1)}, {}, BadType, "modality"),
]


@pytest.mark.parametrize(("kinds", "options", "error", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_makes_no_latent_is_refused(kinds, options, error, message):
    with pytest.raises(error, match=message):
        Modalities(kinds, **options)


def test_mixing_is_possible_where_it_is_meant():
    both = Modalities({"image": Image(*PICTURE), "other": Image(*PICTURE, own=False)}, mixed=True)
    assert both.shape == PICTURE


def test_sizes_that_are_none_are_refused():
    for make in (
        lambda: Label(1),
        lambda: Label(3, own=-1),
        lambda: Image(0, 8, 8),
        lambda: Image(1, 8, 8, std=0.0),
        lambda: Vector(0),
        lambda: Values((5,)),
    ):
        with pytest.raises(BadValue):
            make()


SAMPLES = [
    ({"image": torch.zeros(2, 1, 8, 8)}, BadValue, "missing"),
    ({"image": torch.zeros(2, 3, 8, 8), "label": torch.zeros(2, dtype=torch.long)}, BadValue, "shape"),
    ({"image": torch.zeros(2, 1, 8, 8), "label": torch.zeros(2)}, BadType, "integers"),
    ({"image": torch.zeros(2, 1, 8, 8), "label": torch.tensor([0, 10])}, BadValue, r"0 \.\.\. 9"),
    ({"image": torch.full((2, 1, 8, 8), torch.nan), "label": torch.tensor([0, 1])}, BadValue, "NaN"),
    ({"picture": torch.zeros(2, 1, 8, 8), "label": torch.tensor([0, 1])}, BadValue, "modality"),
    ([torch.zeros(2, 1, 8, 8)], BadType, "dictionary"),
]


@pytest.mark.parametrize(("x", "error", "message"), SAMPLES, ids=[str(i) for i in range(len(SAMPLES))])
def test_samples_that_do_not_fit_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        Modalities({"image": Image(*PICTURE), "label": Label(10)}).check(x)


def test_a_modality_is_no_condition_of_the_same_batch():
    kinds = Modalities({"image": Image(*PICTURE), "label": Label(10)})
    x = {"image": normal(2, *PICTURE), "label": torch.tensor([0, 1])}
    with pytest.raises(BadValue, match="'label'"):
        kinds.split(x, cd.conditions.as_conditions({"label": torch.tensor([0, 1])}))
    split, rest = kinds.split(x["image"], cd.conditions.as_conditions({"label": x["label"], "age": torch.ones(2)}))
    assert torch.equal(split["label"], x["label"])
    assert list(rest) == ["age"]
    assert isinstance(rest, Conditions)


NETWORK = {"shape": PICTURE, "width": 32, "depth": 1, "heads": 2}


def test_networks_and_processes_that_do_not_fit_are_refused():
    kinds = {"image": Image(*PICTURE), "label": Label(10)}
    with pytest.raises(Incompatible, match="shape"):
        MultiModal(DiT(**{**NETWORK, "shape": (3, 8, 8)}), CHAIN, kinds)
    with pytest.raises(Incompatible, match="only"):
        MultiModal(DiT(**NETWORK, conditions={"label": cd.conditions.Label(10)}), CHAIN, kinds)
    with pytest.raises(Incompatible, match="outputs=1"):
        MultiModal(DiT(**NETWORK, outputs=2), CHAIN, kinds)
    with pytest.raises(Incompatible, match="endpoint"):
        MultiModal(DiT(**NETWORK), Bridge(), kinds)
    with pytest.raises(BadType, match="features"):
        MultiModal(torch.nn.Linear(3, 3), CHAIN, kinds)
    with pytest.raises(BadValue, match="target"):
        MultiModal(DiT(**NETWORK), CHAIN, kinds, target="eps")
    assert MultiModal(DiT(**NETWORK), Gaussian(Cosine()), kinds).told is False
