"""Pipelines of the real classes as classifiers, and steered by classifiers of clean images."""

import json

import pytest
import torch
from PIL import Image
from tiny import dit, sd3, stable_diffusion, text_config, tokenizer
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from condiff.cli.main import main
from condiff.conditions import Conditions
from condiff.errors import BadValue, Incompatible
from condiff.guidance import ClassScore, gradient
from condiff.interop import wrap
from condiff.methods import elucd
from condiff.sampling import DDIM, DDPM, sample
from condiff.scoring import Bound, DiffusionClassifier, Error, Total

PROMPTS = ["a red fox", "two cats", "one dog"]


def images(count=2, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


def by_hand(pipe, x, words, stages):
    """The released program's errors of a text-to-image pipeline, with the scheduler's own table."""
    z = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
    tokens, _ = pipe.encode_prompt(words, "cpu", 1, False)
    bar = pipe.scheduler.alphas_cumprod
    clf_noise = torch.randn(stages, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    stride = 1000 // stages
    total = torch.zeros(len(x), len(words))
    for j, t in enumerate(range(stride // 2, 1000, stride)):
        a, s = bar[t].sqrt(), (1 - bar[t]).sqrt()
        for c in range(len(words)):
            x_t = a * z + s * clf_noise[j]
            out = pipe.unet(x_t, t, tokens[c : c + 1].expand(len(x), -1, -1), return_dict=False)[0]
            if pipe.scheduler.config.prediction_type == "v_prediction":
                out = a * out + s * x_t
            total[:, c] += (out - clf_noise[j]).abs().mean((1, 2, 3)) / stages
    return total, clf_noise


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_errors_of_stable_diffusion_are_those_of_the_released_program(kind):
    pipe, x = stable_diffusion(prediction_type=kind), images()
    want, noise = by_hand(pipe, x, PROMPTS, 5)
    sd = wrap(pipe)
    clf = DiffusionClassifier(
        denoiser=sd.denoiser,
        candidates=sd.encode(PROMPTS),
        stages=((5, 1),),
        measure=Error(loss="l1"),
        noise=noise,
        batch=7,
    )
    scores = clf.scores(sd.codec.encode(x))
    torch.testing.assert_close(scores.errors.float(), want, rtol=1e-4, atol=1e-5)
    assert torch.equal(scores.best, want.argmin(1))


@torch.no_grad()
def test_a_class_conditional_transformer_by_all_its_scores():
    """l2, l1, the bound with the learned variance, and l2 + bound."""
    wrapped = wrap(dit())
    z = wrapped.codec.encode(images())
    for measure in (Error(), Error(loss="l1"), Bound(), Total((Error(), Bound()))):
        clf = DiffusionClassifier(
            denoiser=wrapped.denoiser, candidates=wrapped.encode(range(7)), stages=((4, 1),), measure=measure, batch=64
        )
        scores = clf.scores(z)
        assert scores.errors.shape == (2, 7) and bool((scores.errors > 0).all())
        assert len(set(scores.errors[0].tolist())) == 7  # it hears its class
    plain = wrap(dit(learned=False))
    with pytest.raises(Incompatible, match="variance head"):
        DiffusionClassifier(
            denoiser=plain.denoiser, candidates=plain.encode(range(7)), stages=((4, 1),), measure=Bound()
        ).scores(z)


@torch.no_grad()
def test_a_flow_pipeline_by_its_velocity():
    wrapped = wrap(sd3())
    clf = DiffusionClassifier(
        denoiser=wrapped.denoiser,
        candidates=wrapped.encode(PROMPTS),
        stages=((3, 2), (9, 1)),
        measure=Error(target="velocity"),
    )
    scores = clf.scores(wrapped.codec.encode(images()))
    assert scores.best.shape == (2,) and torch.isfinite(scores.errors).all()


def test_the_command_on_a_saved_pipeline(capsys, tmp_path):
    pipe = stable_diffusion()
    pipe.save_pretrained(tmp_path / "pipe", safe_serialization=True)
    (tmp_path / "p.csv").write_text("prompt,classname,classidx\na red fox,fox,0\ntwo cats,cat,1\na cat,cat,1\n")
    for name in ("fox", "cat"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (24, 20), (200, 90, 10)).save(tmp_path / "photos" / name / "0.png")
    argv = ["classify", tmp_path / "pipe", tmp_path / "photos", "--prompts", tmp_path / "p.csv", "--levels", "2"]
    assert main([str(a) for a in [*argv, "--out", tmp_path / "o", "--device", "cpu", "--json"]]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["classes"] == ["fox", "cat"] and said["samples"] == 2 and said["accuracy"] == 0.5
    assert len(said["predictions"]) == 2 and said["evaluations"] == 6
    (tmp_path / "photos" / "fox").rename(tmp_path / "photos" / "wolf")
    assert main([str(a) for a in [*argv, "--device", "cpu"]]) == 2
    assert "wolf" in capsys.readouterr().err


def test_pickled_weights_are_refused(capsys, tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "pipe", safe_serialization=False)
    (tmp_path / "p.csv").write_text("prompt,classname,classidx\na red fox,fox,0\ntwo cats,cat,1\n")
    argv = ["classify", tmp_path / "pipe", tmp_path, "--prompts", tmp_path / "p.csv", "--device", "cpu"]
    assert main([str(a) for a in argv]) == 2
    assert "can't be loaded" in capsys.readouterr().err


def test_a_picture_of_another_size_is_refused():
    sd = wrap(stable_diffusion())
    clf = DiffusionClassifier(denoiser=sd.denoiser, candidates=sd.encode(PROMPTS), stages=((2, 1),))
    with pytest.raises(BadValue, match="multiples of"):
        sd.codec.encode(images(size=15))
    with pytest.raises(BadValue, match="state of shape"):
        clf.scores(sd.codec.encode(images(size=32)))


# Steering


class Clean(nn.Module):
    """A small convolutional classifier of images."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, 2, 1))

    def forward(self, x):
        return self.body(x).mean((2, 3))


def test_latents_are_decoded_for_the_classifier():
    wrapped, classifier = wrap(dit()), Clean().eval()
    cond, labels = wrapped.encode([3, 5]), torch.tensor([0, 4])
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with pytest.raises(Incompatible, match="decode="):
        sample(
            wrapped.denoiser,
            cond=cond,
            solver=DDPM("learned_range"),
            grid=wrapped.grid(3),
            initial=start,
            seed=0,
            hooks=elucd.on_mean(ClassScore(classifier, labels), clip=None),
        )

    def draw(scale):
        score = ClassScore(classifier, labels, marginal=0.5, decode=wrapped.codec.decode)
        return sample(
            wrapped.denoiser,
            cond=cond,
            solver=DDPM("learned_range"),
            grid=wrapped.grid(5),
            initial=start,
            seed=0,
            hooks=elucd.on_mean(score, scale, clip=None),
        )

    def said(z):
        with torch.no_grad():
            return classifier(wrapped.codec.decode(z)).log_softmax(1).gather(1, labels[:, None])

    assert bool((said(draw(20.0)) > said(draw(0.0))).all())


def test_clip_as_the_classifier():
    """Logits are similarities to a set of prompts."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, projection_dim=32, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    text = text_config().to_dict()
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=32)).eval()
    clip.requires_grad_(False)
    ids = tokenizer()(PROMPTS, padding=True, return_tensors="pt")

    def logits(x):
        return clip(pixel_values=x, **ids).logits_per_image

    sd = wrap(stable_diffusion())
    score = ClassScore(logits, 1, decode=sd.codec.decode)
    z = torch.randn(2, 4, 8, 8)
    assert score(z, None, Conditions()).shape == (2,)
    grad = gradient(score)(z, None, Conditions())
    assert grad.shape == z.shape and torch.isfinite(grad).all() and bool((grad != 0).any())
    guided = elucd.on_noise(sd.denoiser, score, scale=0.1)
    x = sample(guided, cond=sd.encode(PROMPTS[:2]), solver=DDIM(), grid=sd.grid(3), initial=z)
    assert torch.isfinite(x).all()
