"""Attention control on queries, keys and values, against maps that are written down."""

import pytest
import torch

from condiff.errors import BadValue, Incompatible
from condiff.networks import AttentionControl, Mixing
from condiff.networks.attention import plain_weights
from condiff.networks.attention_control import grid_of

TARGETS, NUM, HEADS, TOKENS = 2, 3, 2, 5


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(q, k, v, mask):
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    seen = mask[:, None, None, :] if mask is not None else None
    return (plain_weights(q, k, seen) @ v).transpose(1, 2).flatten(2)


def mixing(rows=NUM, seed=3):
    heard = some(TARGETS, rows, TOKENS, TOKENS, seed=seed).abs()
    return Mixing(heard, some(TARGETS, rows, TOKENS, seed=seed + 1).abs())


def projected(groups=2, tokens=TOKENS, queries=4):
    rows = groups * (1 + TARGETS) * NUM
    return tuple(some(rows, n, HEADS, 3, seed=i) for i, n in enumerate((queries, tokens, tokens)))


@pytest.fixture
def control():
    control = AttentionControl(TARGETS)
    with control.over(1):
        control.begin((1 + TARGETS) * NUM)
        yield control


def by_hand(q, k, v, mixed, last, mask=None):
    """Every target's map, one at a time."""
    seen = None if mask is None else mask[:, None, None, :]
    maps = plain_weights(q.transpose(1, 2), k.transpose(1, 2), seen)
    first = len(q) - (1 + TARGETS) * NUM if last else 0
    out = maps.clone()
    for t in range(TARGETS):
        for n in range(NUM):
            row, source = first + (1 + t) * NUM + n, first + n
            m = n if mixed is not None and mixed.own.shape[1] > 1 else 0
            if mixed is None:
                out[row] = maps[source]
            else:
                out[row] = maps[source] @ mixed.heard[t, m] + maps[row] * mixed.own[t, m]
    return (out @ v.transpose(1, 2)).transpose(1, 2).flatten(2), out[first : first + (1 + TARGETS) * NUM]


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("rows", [1, NUM])
@pytest.mark.parametrize("groups", [1, 2])
def test_crossed_maps_are_those_written_down(control, last, rows, groups):
    q, k, v = projected(groups)
    control.begin((1 + TARGETS) * NUM, last)
    control.mixing, control.keep = mixing(rows), True
    mask = some(len(q), TOKENS, seed=9) > -0.5
    mask[:, 0] = True
    for seen in (None, mask):
        want, maps = by_hand(q, k, v, control.mixing, last, seen)
        torch.testing.assert_close(control.attend(q, k, v, seen, kernel, True), want)
        control.sums.clear()
        control.counts.clear()
        control.attend(q, k, v, seen, kernel, True)
        torch.testing.assert_close(control.maps(4), maps.float().mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_tied_self_attention_is_that_of_the_source(control, last):
    q, k, v = projected(tokens=4)
    control.begin((1 + TARGETS) * NUM, last)
    control.tied = True
    torch.testing.assert_close(control.attend(q, k, v, None, kernel, False), by_hand(q, k, v, None, last)[0])


def test_other_rows_are_untouched_bit_for_bit(control):
    q, k, v = projected()
    plain = kernel(q, k, v, None)
    control.mixing, control.tied = mixing(), True
    group = slice(NUM, (1 + TARGETS) * NUM)
    for cross in (True, False):
        keys = (k, v) if cross else (q, q)
        plain = kernel(q, *keys, None)
        out = control.attend(q, *keys, None, kernel, cross)
        rest = torch.ones(len(q), dtype=torch.bool)
        rest[group] = False
        assert torch.equal(out[rest], plain[rest]) and not torch.isclose(out[group], plain[group]).any(-1).all()


def test_without_anything_to_do_the_kernel_alone_is_called(control):
    q, k, v = projected()
    assert not control.acts(4, True) and not control.acts(4, False)
    assert torch.equal(control.attend(q, k, v, None, kernel, True), kernel(q, k, v, None))
    control.tied = control.keep = True
    assert control.acts(32**2, False) and not control.acts(32**2 + 1, False)  # and larger maps aren't kept
    assert control.acts(32**2, True) and not control.acts(32**2 + 1, True)
    control.attend(q, k, v, None, kernel, True)
    assert control.nbytes == (1 + TARGETS) * NUM * 4 * TOKENS * 4
    before = control.nbytes
    control.attend(q, k, v, None, kernel, True)
    assert control.nbytes == before
    torch.testing.assert_close(control.maps(4).sum(-1), torch.ones(9, 4))
    with pytest.raises(BadValue, match="no maps of 9 queries"):
        control.maps(9)


def test_gradients_flow_to_the_source(control):
    q, k, v = (a.requires_grad_() for a in projected(1))
    control.mixing = mixing()
    control.attend(q, k, v, None, kernel, True)[NUM:].sum().backward()
    assert q.grad[:NUM].abs().sum() > 0.0 and v.grad[NUM:].abs().sum() > 0.0


def test_what_does_not_fit_is_refused(control):
    q, k, v = projected()
    control.mixing = mixing()
    with pytest.raises(Incompatible, match="groups of 9 rows, got a batch of 4"):
        control.attend(q[:4], k[:4], v[:4], None, kernel, True)
    with pytest.raises(Incompatible, match="prompts of 5 tokens were aligned, got 4"):
        control.attend(q, k[:, :4], v[:, :4], None, kernel, True)
    with pytest.raises(BadValue, match="a multiple of 3 rows"):
        control.begin(4)
    with pytest.raises(Incompatible, match="in use already"), control.over(1):
        pass
    with pytest.raises(Incompatible, match="no network is under this control"):
        AttentionControl().begin(2)
    with pytest.raises(BadValue, match="don't match"):
        Mixing(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3))


def test_places_of_queries():
    """A convolution of stride 2 rounds up."""
    assert grid_of(256, 64, 64) == (16, 16, 4)
    assert grid_of(64 * 96, 64, 96) == (64, 96, 1)
    assert grid_of(5 * 3, 10, 5) == (5, 3, 2)
    assert grid_of(7, 8, 8) is None and grid_of(100, 8, 8) is None
