"""Aligned variables: rows, times and conditions reach the one network as they should, and come back apart."""

import pytest
import torch

import condiff as cd
from condiff.aligned import Aligned, _stacked
from condiff.conditions import TiedDropout
from condiff.errors import BadType, BadValue, Incompatible
from condiff.networks import Tie, add_pair
from condiff.random import as_source

SHAPE = (1, 8, 8)
LAW = cd.process.Gaussian(cd.process.Discrete.stable_diffusion())


def denoiser(**fields):
    torch.manual_seed(0)
    fields = {"conditions": {"label": cd.conditions.Label(10)}, **fields}
    net = cd.networks.DiT(shape=SHAPE, width=16, depth=2, heads=2, **fields)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return cd.Denoiser(net, LAW, "noise", shape=SHAPE).eval()


def tied(base=None, own=False, variables=("x", "y")):
    base = denoiser() if base is None else base
    add_pair(base.network, "pair", rank=2, own=own)
    for name, p in base.named_parameters():
        if "lora_B" in name or "post" in name:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    return Aligned(base, variables, [Tie("x", "y", own=own)])


def states(rows=3, seed=0, names=("x", "y")):
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *SHAPE, generator=rng) for name in names}


TIMES = {"x": torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), "y": 0.3}


def test_without_ties_each_variable_is_denoised_alone():
    base, x = denoiser(), states()
    model, cond = Aligned(base, ("x", "y")), {"label": [1, 2, 3]}
    said = model(x, TIMES, cond)
    for name in x:
        alone = base(x[name], TIMES[name], cond)
        torch.testing.assert_close(said[name].noise, alone.noise, rtol=1e-5, atol=1e-5)
        assert said[name].level.process is LAW
    torch.testing.assert_close(said["y"].x0, base(x["y"], 0.3, cond).x0, rtol=1e-5, atol=1e-4)


def test_conditions_are_told_to_all_or_to_one():
    model, x = tied(), states()
    both = model(x, TIMES, {"label": [1, 2, 3]})
    same = model(x, TIMES, {"x.label": [1, 2, 3], "y.label": [1, 2, 3]})
    assert all(torch.equal(both[n].noise, same[n].noise) for n in x)
    own = model(x, TIMES, {"label": [1, 2, 3], "y.label": [4, 5, 6]})
    assert not torch.equal(own["y"].noise, both["y"].noise)
    nothing = model(x, TIMES, {"x.label": [1, 2, 3]})  # absent for y
    dropped = model(x, TIMES, model_conditions(model, {"x.label": [1, 2, 3], "y.label": [4, 5, 6]}).drop("y.label"))
    assert all(torch.equal(nothing[n].noise, dropped[n].noise) for n in x)


def model_conditions(model, cond):
    return cd.conditions.as_conditions(cond, model.kinds)


def test_the_joint_strength_is_a_condition_of_each_row():
    model, x, base = tied(), states(), Aligned(denoiser(), ("x", "y"))
    cond = {"label": [1, 2, 3], "joint": torch.tensor([1.0, 0.0, 0.5])}
    said, on, off = model(x, TIMES, cond), model(x, TIMES, {"label": [1, 2, 3]}), base(x, TIMES, {"label": [1, 2, 3]})
    for name in x:
        assert torch.equal(said[name].noise[1], off[name].noise[1])
        assert torch.equal(said[name].noise[0], on[name].noise[0])
        assert not torch.equal(said[name].noise[2], on[name].noise[2])
    apart = model(x, TIMES, model_conditions(model, cond).drop("joint"))
    assert all(torch.equal(apart[n].noise, off[n].noise) for n in x)


def test_classifier_free_guidance_leaves_the_tie_in_place():
    """The strength isn't dropped with the labels, unless it is named."""
    model, x = tied(), states()
    cond = model_conditions(model, {"label": [1, 2, 3], "joint": torch.ones(3)})
    guided = cd.guidance.Free(model, scale=3.0)(x, TIMES, cond)
    told, free = model(x, TIMES, cond), model(x, TIMES, cond.drop("label"))
    for name in x:
        wanted = 3.0 * told[name].noise - 2.0 * free[name].noise
        torch.testing.assert_close(guided[name].noise, wanted, rtol=1e-4, atol=1e-4)


def test_three_variables_with_two_ties():
    base, x = denoiser(), states(names=("x", "y", "z"))
    for name in ("first", "second"):
        add_pair(base.network, name, rank=2)
    for name, p in base.named_parameters():
        if "lora_B" in name or "post" in name:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    model = Aligned(base, ("x", "y", "z"), [Tie("x", "y", adapter="first"), Tie("x", "z", adapter="second")])
    said = model(x, 0.5, {"label": [1, 2, 3]})
    moved = model({**x, "z": x["z"] + 1.0}, 0.5, {"label": [1, 2, 3]})
    assert not torch.equal(said["x"].noise, moved["x"].noise)  # x hears z
    pair = Aligned(base, ("x", "y"), [Tie("x", "y", adapter="first")])
    alone = pair({n: x[n] for n in ("x", "y")}, 0.5, {"label": [1, 2, 3]})
    assert not torch.allclose(said["x"].noise, alone["x"].noise)
    assert model.shape == dict.fromkeys("xyz", SHAPE)


def test_it_is_sampled_and_trained_as_joint_states_are():
    model = tied()
    made = cd.sample(model, solver=cd.UniPC(), cond={"label": [1, 2]}, steps=4, seed=0)
    assert made["x"].shape == made["y"].shape == (2, *SHAPE) and made["x"].isfinite().all()
    batch = {"x": states(4, 1), "cond": {"label": torch.arange(4)}}
    losses = cd.training.JointDenoising()(model, batch, 0)
    losses.loss.backward()
    assert losses.per_sample.shape == (4,) and set(losses.parts) == {"x", "y"}


def test_a_time_for_all_goes_beside_times_of_rows_on_any_device():
    process = cd.process.Gaussian(cd.process.Cosine())
    rows = process.at(torch.tensor([0.1, 0.2], dtype=torch.float64, device="meta"))
    both = _stacked([process.at(0.3), rows], 2)
    assert both.t.shape == (4,) and both.t.device.type == both.data.device.type == "meta"


def test_it_says_what_it_is():
    model = tied()
    assert model.config()["variables"] == ["x", "y"] and model.config()["ties"][0]["part"] == "networks.Tie"
    assert "Tie(first='x', second='y'" in repr(model)
    assert model.kinds["y.label"] == "label" and model.kinds["joint"] == "strength"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Aligned(denoiser(), ("x",)), BadValue, "two or more"),
        (lambda: Aligned(denoiser(), ("x", "x")), BadValue, "two or more"),
        (lambda: Aligned(denoiser(), "xy"), BadValue, "two or more"),
        (lambda: Aligned(denoiser().network, ("x", "y")), BadType, "takes a Denoiser"),
        (lambda: Aligned(denoiser(), ("x", "y"), [Tie("x", "y", adapter="none")]), BadValue, "unknown adapter 'none'"),
        (lambda: Aligned(tied().denoiser, ("x", "y"), [Tie("x", "z")]), BadValue, "unknown variable 'z'"),
        (lambda: tied()(states(), TIMES, {"z.label": [1, 2, 3]}), BadValue, "unknown condition of aligned"),
        (lambda: tied()({"x": torch.zeros(1, *SHAPE)}, 0.5), BadValue, "must have the names"),
        (
            lambda: tied()({"x": torch.zeros(1, *SHAPE), "y": torch.zeros(1, 1, 4, 4)}, 0.5),
            BadValue,
            "states of one shape",
        ),
        (
            lambda: Aligned(
                cd.Denoiser(cd.networks.UNet(shape=SHAPE, width=8, groups=4), LAW, "noise", shape=SHAPE),
                ("x", "y"),
                [Tie("x", "y")],
            ),
            Incompatible,
            "no joint attention",
        ),
    ],
)
def test_refusals(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_dropout_by_one_number_drops_together():
    cond = cd.conditions.as_conditions({"a": torch.arange(20000), "b": torch.arange(20000), "c": torch.arange(20000)})
    tied_out = TiedDropout({"a": (0.0, 0.2), "b": (0.1, 0.3)})
    out = tied_out(cond, None, as_source(0))
    a, b = ~out["a"].kept(), ~out["b"].kept()
    shares = [float(v.float().mean()) for v in (a & ~b, a & b, b & ~a)]
    assert shares == pytest.approx([0.1, 0.1, 0.1], abs=0.008) and bool(out["c"].kept().all())
    u = as_source(0).uniform((20000,), torch.float64)
    assert torch.equal(a, u < 0.2) and torch.equal(b, (u >= 0.1) & (u < 0.3))
    assert tied_out(cond, None, as_source(0), training=False) is cond
    with pytest.raises(BadValue, match="unknown condition"):
        TiedDropout({"d": (0.0, 0.1)})(cond)
    with pytest.raises(BadValue, match="interval"):
        TiedDropout({"a": (0.5, 0.1)})
