"""A small classifier of 8x8 digits: features and probabilities for the metrics of the bundled data set.

The weights are committed (``digits.safetensors``), so that a Fréchet distance means the same on every machine;
``python -m condiff.metrics.digit_classifier`` trains them again from the training split. Predictions, by which
class accuracy is judged, come from a support vector machine that shares nothing with the network; it is fitted
on first use (libsvm is deterministic, 0.05 s).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from condiff.data.digits import digits
from condiff.errors import BadValue, require_extra
from condiff.typing import Float, Int

WEIGHTS = Path(__file__).with_name("digits.safetensors")


class _Network(nn.Module):
    """Two convolutions and two linear layers; the features are the 64 numbers before the last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.hidden, self.logits = nn.Linear(32 * 16, 64), nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        x = functional.silu(self.conv2(functional.silu(self.conv1(x))))
        return functional.silu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


class DigitClassifier:
    """Judges (B, 1, 8, 8) images in [-1, 1]; build it with :func:`digit_classifier`."""

    def __init__(self, network: _Network) -> None:
        self.network = network.eval().requires_grad_(False)

    def _check(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (1, 8, 8):
            raise BadValue(f"the digit classifier judges images (B, 1, 8, 8), got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise BadValue("the digit classifier got NaN or infinite pixels")
        return x

    @torch.no_grad()
    def features(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 64"]:
        """Features for distances between sets of digits, float64 on x's device."""
        return self.network.to(x.device, torch.float64).features(self._check(x).double())

    @torch.no_grad()
    def probabilities(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 10"]:
        """Class probabilities of the network."""
        return self.network.to(x.device, torch.float64)(self._check(x).double()).softmax(dim=1)

    def predict(self, x: Float[Tensor, "batch 1 8 8"]) -> Int[Tensor, " batch"]:
        """Classes according to the support vector machine."""
        pixels = self._check(x).detach().double().cpu().flatten(1).numpy()
        return torch.from_numpy(_support_vector_machine().predict(pixels)).to(x.device)

    def heldout_accuracy(self) -> dict[str, float]:
        """Accuracy of both judges on the held-out digits: what class accuracy can be expected of real data."""
        batch = (test := digits("test")).batch(range(len(test)))
        x, y = batch["x"], batch["cond"]["label"]
        network = self.probabilities(x).argmax(dim=1)
        return {"svm": float((self.predict(x) == y).double().mean()), "network": float((network == y).double().mean())}


@cache
def _support_vector_machine():
    svm = require_extra("sklearn.svm", "metrics").SVC(gamma=0.06, C=10.0)
    batch = (train := digits("train")).batch(range(len(train)))
    return svm.fit(batch["x"].double().flatten(1).numpy(), batch["cond"]["label"].numpy())


@cache
def digit_classifier() -> DigitClassifier:
    """The bundled classifier of handwritten digits.

    Example:
        >>> judge = digit_classifier()
        >>> judge.heldout_accuracy()["svm"] > 0.98
        True
    """
    from safetensors.torch import load_file

    network = _Network()
    network.load_state_dict(load_file(WEIGHTS))
    return DigitClassifier(network)


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to one pixel, with noise."""
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    padded = functional.pad(x, (1, 1, 1, 1), value=-1.0)
    x = padded[..., 1 + shift[0] : 9 + shift[0], 1 + shift[1] : 9 + shift[1]]
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def train(epochs: int = 150, batch: int = 48, seed: int = 0) -> _Network:
    """The network behind the committed weights: AdamW with a one-cycle rate on shifted, noisy training digits."""
    generator = torch.Generator().manual_seed(seed)
    network = _Network()
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        std = fan_in**-0.5 if parameter.ndim > 1 else 0.0
        parameter.data = std * torch.randn(parameter.shape, generator=generator)
    data = digits("train").batch(range(len(digits("train"))))
    x, y = data["x"], data["cond"]["label"]
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=generator)
        loss = functional.cross_entropy(network(_augmented(x[rows], generator)), y[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return network


if __name__ == "__main__":
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in train().state_dict().items()}, WEIGHTS)
    digit_classifier.cache_clear()
    print(f"wrote {WEIGHTS}: held-out accuracy {digit_classifier().heldout_accuracy()}")
