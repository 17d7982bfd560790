"""Codecs are trained to reconstruct."""

import pytest
import torch

import condiff as cd
from condiff.codecs import Autoencoder, Identity
from condiff.errors import BadType, BadValue
from condiff.training import Reconstruction


def batch(rows=4, frames=True):
    x = torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    both = cd.Condition(torch.stack([x - 0.1, x + 0.3], 1), "frames")
    return {"x": x, "cond": {"frames": both} if frames else {}}


def test_the_loss_of_a_fresh_codec_with_references_is_that_of_their_mean():
    codec = Autoencoder(shape=(1, 8, 8), width=8, multipliers=(1, 2), references=2)
    losses = Reconstruction(penalty=0.0)(codec, batch())
    torch.testing.assert_close(losses.per_sample, torch.full((4,), 0.1))  # the mean of the references is x + 0.1
    squared = Reconstruction(loss="l2", penalty=0.0)(codec, batch())
    torch.testing.assert_close(squared.loss, torch.tensor(0.01))


def test_penalty_weights_and_features():
    x, double = batch()["x"], lambda v: 2.0 * v
    losses = Reconstruction(penalty=0.5)(Identity(), {"x": x, "weight": torch.tensor([1.0, 0.0, 0.0, 0.0])})
    torch.testing.assert_close(losses.per_sample, 0.5 * x.square().flatten(1).mean(1))
    torch.testing.assert_close(losses.loss, losses.per_sample[0] / 4)
    codec = Autoencoder(shape=(1, 8, 8), width=8, multipliers=(1, 2), references=2)
    objective = Reconstruction(penalty=0.0, features=double, feature_weight=0.5)
    torch.testing.assert_close(objective(codec, batch()).per_sample, torch.full((4,), 0.1 + 0.5 * 0.2))


def test_a_codec_trains_in_the_trainer_and_every_part_learns():
    x = batch(32)["x"]
    both = torch.stack([x.roll(1, -1), x.roll(-1, -1)], 1)
    data = cd.data.TensorData(x, cond={"frames": both}, kinds={"frames": "frames"})
    codec = Autoencoder(shape=(1, 8, 8), channels=2, width=8, multipliers=(1, 2), references=2)
    before = {k: v.clone() for k, v in codec.named_parameters()}
    config = cd.TrainConfig(steps=40, batch=16, lr=3e-3, warmup=0, seed=0)
    trainer = cd.Trainer(codec, data, Reconstruction(), config, quiet=True)
    trainer.fit()
    assert trainer.history[-1]["loss"] < 0.8 * trainer.history[0]["loss"]
    assert [k for k, v in codec.named_parameters() if torch.equal(v, before[k])] == []


def test_bad_input_is_refused():
    codec = Autoencoder(shape=(1, 8, 8), width=8, multipliers=(1, 2), references=2)
    with pytest.raises(BadType, match="trains a codec, got a Linear"):
        Reconstruction()(torch.nn.Linear(2, 2), batch())
    with pytest.raises(BadValue, match="takes as its reference, 'frames'"):
        Reconstruction()(codec, batch(frames=False))
    with pytest.raises(BadValue, match="unknown loss 'l3'"):
        Reconstruction(loss="l3")
    with pytest.raises(BadValue, match=">= 0"):
        Reconstruction(penalty=-1.0)
