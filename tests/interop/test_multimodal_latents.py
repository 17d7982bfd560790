"""Latents of a diffusers autoencoder as the picture of a joint model: latent and label, in both directions."""

import torch
from tiny import vae

import condiff as cd
from condiff.data import Encoded, TensorData, Together
from condiff.interop.vae import VAE
from condiff.methods.multi_task_diffusion import MTDiffusion
from condiff.multimodal import Image, Label
from condiff.networks import DiTConfig


def test_latents_and_labels_are_generated_together():
    codec = VAE(vae())
    pictures = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    labels = torch.arange(24) % 3
    data = Encoded(TensorData(pictures, {"label": labels}, range="keep"), codec)
    shape = codec.latent_shape((3, 16, 16))
    z = data.batch(range(24))["x"]
    kinds = {"image": Image(*shape, mean=float(z.mean()), std=float(z.std())), "label": Label(3)}
    mt = MTDiffusion(kinds, DiTConfig(shape=shape, width=32, depth=1, heads=2))
    mt.fit(data, steps=3, batch=8, quiet=True)
    made = mt.sample(2, known={"label": 1}, steps=3, seed=0)
    assert made["image"].shape == (2, *shape)
    assert codec.decode(made["image"]).shape == (2, 3, 16, 16)
    seen = mt.sample(known={"image": codec.encode(pictures[:2])}, steps=3, seed=0)
    assert torch.equal(seen["image"], codec.encode(pictures[:2]))
    assert seen["label"].shape == (2,)
    bound = cd.metrics.joint_elbo(mt.model, made, times=[0.001, 0.5, 1.0], rng=0)
    assert bound.total.shape == (2,)
    assert torch.isfinite(bound.total).all()


def test_they_are_rows_of_variables_too():
    data = TensorData(torch.rand(12, 3, 16, 16) * 2.0 - 1.0, {"label": torch.arange(12) % 3}, range="keep")
    both = Together(Encoded(data, VAE(vae())), ["label"])
    assert both.shape["label"] == ()
    assert both.batch([0, 1])["x"]["image"].shape[1] == 4
