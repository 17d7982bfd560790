"""Calibration and confusion against counts by hand."""

import math

import pytest
import torch

from condiff import figures
from condiff.errors import BadType, BadValue, NonFinite
from condiff.metrics import calibration, confusion, mean_class_accuracy, text_score


def rows(*confidences):
    """Two classes, the first predicted."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p, 1.0 - p], 1)


def test_the_calibration_error_is_its_sum_over_bins():
    p = rows(0.95, 0.95, 0.95, 0.95, 0.62, 0.65)
    labels = torch.tensor([0, 0, 0, 1, 0, 1])
    got = calibration(p, labels, bins=10)
    by_hand = 4 / 6 * abs(0.75 - 0.95) + 2 / 6 * abs(0.5 - 0.635)
    assert got.error == pytest.approx(by_hand, rel=1e-12) and got.worst == pytest.approx(0.2, rel=1e-9)
    assert got.counts.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 4]
    assert math.isnan(float(got.accuracy[0])) and float(got.confidence[6]) == pytest.approx(0.635)


def test_a_bin_holds_its_upper_edge_and_not_its_lower_one():
    got = calibration(rows(0.6, 0.8, 1.0), torch.zeros(3, dtype=torch.long), bins=5)
    assert got.counts.tolist() == [0, 0, 1, 1, 1]


def test_a_calibrated_classifier_has_no_error():
    """Labels drawn from the stated probabilities."""
    g = torch.Generator().manual_seed(0)
    p = (2.0 * torch.randn(200_000, 3, generator=g, dtype=torch.float64)).softmax(1)
    labels = torch.multinomial(p, 1, generator=g)[:, 0]
    assert calibration(p, labels).error < 0.005
    sharp = (3.0 * p.log()).softmax(1)
    assert calibration(sharp, labels).error > 0.1


def test_confusion_counts_rows_of_truth():
    table = confusion(torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 2, 1]), 4)
    assert table.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert mean_class_accuracy(table) == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_text_score_needs_both_images():
    errors = torch.tensor([[[1.0, 2.0], [2.0, 1.0]], [[1.0, 2.0], [1.0, 2.0]], [[2.0, 2.0], [2.0, 1.0]]])
    assert text_score(errors) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: calibration(torch.randn(4, 3), torch.zeros(4, dtype=torch.long)), BadValue, "logits"),
        (lambda: calibration(rows(0.5), torch.tensor([2])), BadValue, "lie in"),
        (lambda: calibration(rows(0.5), torch.tensor([0.0])), BadType, "integers"),
        (lambda: calibration(rows(0.5), torch.tensor([0, 1])), BadValue, "as many labels"),
        (lambda: calibration(rows(math.nan), torch.tensor([0])), NonFinite, "NaN"),
        (lambda: calibration(rows(0.5), torch.tensor([0]), bins=0), BadValue, "bins"),
        (lambda: confusion(torch.tensor([3]), torch.tensor([0]), 3), BadValue, "lie in"),
        (lambda: confusion(torch.tensor([1, 2]), torch.tensor([0]), 3), BadValue, "one batch"),
        (lambda: mean_class_accuracy(torch.zeros(2, 2, dtype=torch.long)), BadValue, "without any"),
        (lambda: text_score(torch.full((1, 2, 2), math.nan)), NonFinite, "NaN"),
        (lambda: figures.reliability({}, "x.png"), BadValue, "no calibrations"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_diagram_is_a_picture(tmp_path):
    one = calibration(rows(0.95, 0.7, 0.7), torch.tensor([0, 1, 0]))
    path = figures.reliability({"on clean": one, "on noisy": one}, tmp_path / "r.png")
    assert path.read_bytes().startswith(b"\x89PNG")
