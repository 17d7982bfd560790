"""A class as a variable of its own beside a noised sample: told where it is revealed, drawn where it is masked."""

import pytest
import torch

from condiff.errors import BadType, Incompatible
from condiff.multimodal import Beside, Image, Label, Modalities, MultiModal
from condiff.networks import DiT
from condiff.process import Cosine, Gaussian, Given
from condiff.sampling import DDIM, JointSolver, TokenAncestral, sample
from condiff.training import JointDenoising

SOLVER = JointSolver({"image": DDIM(), "label": TokenAncestral()})


def joint(weights=None, **fields):
    torch.manual_seed(0)
    kinds = Modalities({"image": Image(1, 8, 8, std=1.0, **fields), "label": Label(10)}, weights or {"label": 0.0})
    network = DiT(shape=(1, 8, 8), width=32, depth=1, heads=2, conditions=kinds.conditions())
    model = MultiModal(network, Gaussian(Cosine()), kinds, "v")
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape)
    return Beside(model.eval())


def state(labels):
    x = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"image": x, "label": torch.tensor(labels)[:, None]}


def test_a_revealed_class_is_told_and_a_masked_one_is_not():
    model = joint()
    x = state([3, 10])  # MASK is 10
    said = model(x, {"image": 0.5, "label": 0.5})
    told = model.model(x["image"], 0.5, {"label": torch.tensor([3, 3])})
    alone = model.model(x["image"], 0.5)
    torch.testing.assert_close(said["image"].x0[0], told.x0[0])
    torch.testing.assert_close(said["image"].x0[1], alone.x0[1])
    expected = model.model.said(alone)["label"][1].log_softmax(-1)
    torch.testing.assert_close(said["label"].log_probs[1, 0], expected)


def test_it_is_sampled_jointly_and_from_either_side():
    model = joint()
    both = sample(model, num=4, steps=6, solver=SOLVER, seed=0)
    assert both["image"].shape == (4, 1, 8, 8)
    assert bool((both["label"] < 10).all())
    still, down = [0.0] * 7, [1 - i / 6 for i in range(7)]
    labels = torch.tensor([[3], [7]])
    x = sample(
        model, num=2, grid={"image": down, "label": still}, prior={"label": Given(labels)}, solver=SOLVER, seed=0
    )
    assert torch.equal(x["label"].long(), labels)
    clean = state([0, 0])["image"]
    y = sample(model, num=2, grid={"image": still, "label": down}, prior={"image": Given(clean)}, solver=SOLVER, seed=0)
    assert torch.equal(y["image"], clean)
    assert bool((y["label"] < 10).all())


def test_its_loss_is_that_of_both_variables():
    model = joint()
    batch = {"x": {"image": state([1] * 64)["image"], "label": (torch.arange(64) % 10)[:, None]}}
    losses = JointDenoising(weights={"label": 0.5})(model, batch, rng=0)
    assert set(losses.parts) == {"image", "label"}
    total = losses.parts["image"] + 0.5 * losses.parts["label"]
    torch.testing.assert_close(losses.loss.detach(), total.to(losses.loss))
    again = model.process.forward(batch["x"], losses.t, rng=0)
    hidden = (again["label"].x_t == 10).double().mean()
    assert 0.2 < float(hidden) < 0.8  # each row at a time of its own
    assert 0.3 < float(losses.parts["label"]) < 3.0  # about half of log(10)


def test_models_of_one_latent_are_refused():
    with pytest.raises(Incompatible, match="weight 0"):
        joint(weights={"label": 1.0})
    with pytest.raises(Incompatible, match="mean=0"):
        joint(mean=0.5)
    with pytest.raises(BadType, match="MultiModal"):
        Beside(DiT(shape=(1, 8, 8), width=32, depth=1, heads=2))
