"""TokenTransformer: what it reads, hears and refuses; denoisers of tokens in model folders."""

import pytest
import torch

from condiff.conditions import Label, Tokens
from condiff.errors import BadType, BadValue, Incompatible
from condiff.model_files import load_model, save_model
from condiff.networks import TokenTransformer, set_attention
from condiff.process import Absorbing
from condiff.token_denoiser import TokenDenoiser


def build(**fields):
    torch.manual_seed(0)
    net = TokenTransformer(**{"shape": (6,), "vocab": 5, "width": 16, "depth": 2, "heads": 2, **fields}).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net


X = torch.randint(0, 6, (3, 6), generator=torch.Generator().manual_seed(1))


def test_ids_and_one_hots_are_the_same_state():
    net = build()
    hot = torch.nn.functional.one_hot(X, 6).float()
    torch.testing.assert_close(net(X, None), net(hot, None), rtol=1e-4, atol=1e-5)


def test_every_position_sees_every_other_and_where_it_stands():
    net = build()
    with torch.no_grad():
        base = net(X, None)
        for i in range(6):
            changed = X.clone()
            changed[:, i] = (changed[:, i] + 1) % 6
            assert ((net(changed, None) - base).abs().amax(-1) > 1e-6).all()
        assert not torch.allclose(net(X.flip(1), None).flip(1), base, atol=1e-4)
        assert net(X[:, :4], None).shape == (3, 4, 5)  # other lengths


def test_conditions_and_time_are_heard():
    net = build(time=True, conditions={"label": Label(3), "text": Tokens(4)})
    t, words = torch.tensor([0.1, 0.5, 0.9]), torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    cond = {"label": torch.tensor([0, 1, 2]), "text": words}
    with torch.no_grad():
        base = net(X, t, cond)
        others = (net(X, t + 0.05, cond), net(X, t, {**cond, "label": torch.tensor([1, 2, 0])}), net(X, t, None))
        assert all((other - base).abs().max() > 1e-4 for other in others)
        assert net(X, t[:, None].expand(3, 6), cond).sub(base).abs().max() < 1e-4  # one time per token
        set_attention(net, "plain")
        torch.testing.assert_close(net(X, t, cond), base, rtol=1e-4, atol=1e-5)


def test_dropout_is_of_training_only():
    net = build(dropout=0.5)
    assert torch.equal(net(X, None), net(X, None))
    net.train()
    assert not torch.equal(net(X, None), net(X, None))


def test_every_weight_gets_a_gradient():
    net = build(conditions={"label": Label(3)})
    net(X, None, {"label": torch.tensor([0, 1, 2])}).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_model_folder_gives_the_denoiser_back(tmp_path):
    model = TokenDenoiser(build(), Absorbing(5), (6,), time_free=True)
    save_model(tmp_path, model)
    again = load_model(tmp_path, "raw")
    assert isinstance(again, TokenDenoiser) and again.config() == model.config() and again.time_free
    torch.testing.assert_close(again(X, 0.5).log_probs, model(X, 0.5).log_probs)
    with pytest.raises(BadValue, match="unknown field of a token denoiser"):
        TokenDenoiser.from_config({**model.config(), "target": "x0"})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: build(shape=(6, 2)), BadValue, "one axis"),
        (lambda: build(vocab=1), BadValue, "at least 2"),
        (lambda: build(dropout=1.0), BadValue, "dropout"),
        (lambda: build(heads=3), BadValue, "divide the width"),
        (lambda: build(attention="flash"), BadValue, "unknown attention"),
        (lambda: build()(X.float(), None), BadType, "tokens are ids"),
        (lambda: build(time=True)(X, None), BadValue, "told the time"),
        (lambda: TokenDenoiser(build(), Absorbing(7)), Incompatible, "predicts 5 tokens"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
