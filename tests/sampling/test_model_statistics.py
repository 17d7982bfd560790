"""Statistics of a model: tables, files, what they are measured as, and the solver that steps by them."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dpm_v3_by_the_book import Book
from torch import nn

from condiff.config import from_config, to_config
from condiff.denoiser import Denoiser, Plain
from condiff.errors import BadFile, BadType, BadValue, Incompatible, NonFinite
from condiff.files import read_tensors, write_tensors
from condiff.guidance import Classifier, Free, Given
from condiff.process import EDM, Bridge, Cosine, Discrete, Gaussian, Joint, Rectified, VPLinear
from condiff.process.oracles import gaussian, mixture
from condiff.sampling import (
    DDIM,
    DPMSolverV3,
    ModelStatistics,
    PredictorCorrector,
    guidance_of,
    invert,
    measure_statistics,
    sample,
    trajectory,
)

VP = Gaussian(VPLinear())
PROCESSES = {
    "vp": VP, "cosine": Gaussian(Cosine()), "flow": Gaussian(Rectified()), "edm": Gaussian(EDM()),
    "sd": Gaussian(Discrete.stable_diffusion()),
}  # fmt: skip
STARTS = {"vp": 1.0, "cosine": 0.99, "flow": 0.99, "edm": 1.0, "sd": 1.0}
MEANS = [[-1.0, 0.5], [1.0, -0.2], [0.3, 1.2]]


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def oracle(process=VP):
    return mixture(process, MEANS, stds=[0.4, 0.5, 0.6], labels=[0, 0, 1])


def smooth(process=VP, nodes=120, start=1.0, end=1e-3):
    """Tables that no model has, but smooth ones, different in both dimensions."""
    base = ModelStatistics.constant(process, nodes=nodes, start=start, end=end)
    u = torch.linspace(0.0, 1.0, nodes + 1, dtype=torch.float64)[:, None] + torch.tensor([0.0, 0.3])
    return ModelStatistics(
        l=0.5 + 0.4 * torch.sin(3.0 * u), s=0.3 * torch.cos(4.0 * u), b=0.5 * torch.sin(5.0 * u),
        ends=base.ends, process=process, guidance="any",
    )  # fmt: skip


# The solver against its formulas


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"corrector": False},
        {"corrector": True, "pseudo_corrector": False},
        {"corrector": True, "pseudo_corrector": False, "corrector_until": 0.5},
        {"corrector": False, "pseudo_predictor": True},
        {"corrector": True, "pseudo_corrector": True},
        {"corrector": True, "pseudo_corrector": True, "pseudo_predictor": True, "lower_order_final": False},
    ],
    ids=lambda o: " ".join(k for k, v in o.items() if v) or "plain",
)
def test_by_the_book(order, options):
    tables, model, x = smooth(), oracle(), rand(3, 2)
    index = [0, 9, 30, 44, 70, 81, 120]
    solver = DPMSolverV3(tables, order=order, **options)
    found = sample(model, solver=solver, grid=tables.times[index], initial=x)
    o = {"lower_order_final": True, "pseudo_predictor": False, "pseudo_corrector": True, "corrector_until": 1.0}
    o |= options
    expected = Book(tables, VP).sample(
        model, x, index, order, o["corrector"], o["corrector_until"], o["pseudo_predictor"], o["pseudo_corrector"],
        o["lower_order_final"],
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("l", "s"), [(1.0, 0.0), (0.0, -1.0)], ids=["x0", "noise"])
def test_constant_tables_of_first_order_are_ddim_on_every_process(name, l, s):  # noqa: E741
    process = PROCESSES[name]
    tables = ModelStatistics.constant(process, l=l, s=s, nodes=2400, start=STARTS[name], end=0.02)
    model, x = oracle(process), rand(3, 2)
    grid = tables.grid("time").times(process, 6)
    found, expected = (
        sample(model, solver=v, grid=grid, initial=x) for v in (DPMSolverV3(tables, order=1, corrector=False), DDIM())
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_levels_between_the_nodes_need_no_snapping():
    model, x, grid = oracle(), rand(3, 2), [0.999, 0.71, 0.512, 0.303, 0.1, 0.0101]
    coarse, fine = (sample(model, solver=DPMSolverV3(smooth(nodes=n), 3), grid=grid, initial=x) for n in (2400, 9600))
    torch.testing.assert_close(coarse, fine, rtol=0, atol=1e-4)
    tables = smooth(nodes=1200)
    snapped = tables.snap(torch.tensor(grid, dtype=torch.float64))
    places = (0.5 * VP.at(snapped).log_snr - tables.ends[0]) / (tables.nodes[1] - tables.nodes[0])
    torch.testing.assert_close(places, places.round(), rtol=0, atol=1e-6)
    assert float((snapped - torch.tensor(grid)).abs().max()) < 0.01
    with pytest.raises(BadValue, match="different nodes"):
        tables.snap(torch.tensor([0.5, 0.4999], dtype=torch.float64))
    with pytest.raises(BadValue, match="different nodes"):
        tables.snap(torch.tensor([0.5, 1e-5], dtype=torch.float64))


@pytest.mark.parametrize("name", ["vp", "flow", "cosine"])
def test_a_step_to_the_clean_end_or_from_pure_noise_is_ddim(name):
    process = PROCESSES[name]
    tables, model, x = smooth(process, start=0.95, end=0.02), oracle(process), rand(3, 2)
    start = [] if name == "vp" else [1.0]
    grid = [*start, 0.95, 0.6, 0.3, 0.02, 0.0]
    steps = list(trajectory(model, x, solver=DPMSolverV3(tables), grid=grid))
    ends = [steps[-1]] if name == "vp" else [steps[0], steps[-1]]
    for step in ends:
        alone = sample(model, solver=DDIM(), grid=[float(step.t.t), float(step.s.t)], initial=step.x_t)
        torch.testing.assert_close(step.x_s, alone)
    assert all(s.x_s.isfinite().all() for s in steps)


def test_a_pause_and_a_turn_forget_the_past():
    tables, model, x = ModelStatistics.constant(VP), oracle(), rand(3, 2)
    solver = DPMSolverV3(tables, order=2, lower_order_final=False)
    steps = list(trajectory(model, x, solver=solver, grid=[0.9, 0.7, 0.7, 0.5, 0.6, 0.4]))
    assert torch.equal(steps[1].x_s, steps[1].x_t)
    for k in (2, 3, 4):
        alone = sample(model, solver=DDIM(), grid=[float(steps[k].t.t), float(steps[k].s.t)], initial=steps[k].x_t)
        torch.testing.assert_close(steps[k].x_s, alone, rtol=1e-5, atol=1e-5)


def test_a_state_that_lost_its_past_steps_by_first_order():
    tables, model, x = ModelStatistics.constant(VP), oracle(), rand(3, 2)
    run = trajectory(model, x, solver=DPMSolverV3(tables, 3), grid=[0.9, 0.7, 0.5, 0.3])
    step = next(run)
    step.state.history.clear()
    step = next(run)
    alone = sample(model, solver=DDIM(), grid=[0.7, 0.5], initial=step.x_t)
    torch.testing.assert_close(step.x_s, alone, rtol=1e-5, atol=1e-5)


def test_inversion_goes_the_same_way_back():
    tables, model, x = ModelStatistics.constant(VP, start=0.9, end=0.05), oracle(), rand(3, 2)
    solver = DPMSolverV3(tables, 3, lower_order_final=False)
    grid = tables.grid().times(VP, 60)
    up = sample(model, solver=solver, grid=grid.flip(0), initial=x)
    down = sample(model, solver=solver, grid=grid, initial=up)
    assert float((down - x).abs().max()) < 1e-2 < float((up - x).abs().max())
    assert float((invert(model, x, solver=solver, grid=grid).latent - up).abs().max()) < 1e-12


def test_tables_that_overflow_are_refused():
    tables = dataclasses.replace(smooth(), s=torch.full((121, 2), 200.0))
    with pytest.raises(NonFinite, match="a few hundred are customary"):
        sample(oracle(), solver=DPMSolverV3(tables), grid=tables.grid(), steps=5, num=2, seed=0)


def test_half_precision_states():
    tables, model = smooth(), oracle()
    x = rand(4, 2)
    found = sample(model, solver=DPMSolverV3(tables), grid=tables.grid(), steps=8, initial=x.half())
    expected = sample(model, solver=DPMSolverV3(tables), grid=tables.grid(), steps=8, initial=x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-2)


def test_inside_other_solvers():
    tables, model = smooth(), oracle()
    solver = PredictorCorrector(DPMSolverV3(tables, order=1, corrector=False), snr=0.1)
    x = sample(model, solver=solver, grid=tables.grid(), steps=6, num=4, seed=0)
    assert x.isfinite().all()
    with pytest.raises(Incompatible, match="samples of shape"):
        sample(gaussian(VP, [0.0, 0.0, 0.0], std=1.0), solver=solver, grid=tables.grid(), steps=6, num=4, seed=0)


# Measuring


def test_one_probe_is_exact_for_a_diagonal_gaussian():
    """J = noise / V on every element: l = noise^2 / V whatever the sample; f is constant, so s = 0."""
    c, m = torch.tensor([0.3, 1.7], dtype=torch.float64), torch.tensor([1.0, -2.0], dtype=torch.float64)
    model = gaussian(VP, m.tolist(), cov=torch.diag(c).tolist())
    tables = measure_statistics(model, data=model.sample(3, rng=0, dtype=torch.float64), nodes=100, rng=1)
    levels = VP.levels(tables.times)
    alpha, sigma = (torch.tensor([[getattr(v, n)] for v in levels], dtype=torch.float64) for n in ("data", "noise"))
    var = alpha**2 * c + sigma**2
    torch.testing.assert_close(tables.l, sigma**2 / var, rtol=0, atol=1e-12)
    assert float(tables.s.abs().max()) == 0.0
    e = torch.exp(-2.0 * tables.nodes)[:, None]
    exact = 2.0 * m * c * e / (c + e) ** 2
    assert float((tables.b - exact)[1:-1].abs().max()) < 0.02 < 0.5 < float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rate", ["difference", "forward"])
def test_where_f_is_nothing_but_round_off_it_has_no_slope(rate, dtype):
    """Normal data of mean 0: all is linear, and the variance of what is left is that of rounding."""
    model = gaussian(VP, [0.0, 0.0], cov=[[0.3, 0.0], [0.0, 1.7]])
    tables = measure_statistics(model, data=model.sample(50, rng=0, dtype=dtype), nodes=100, rng=1, rate=rate)
    assert float(tables.s.abs().max()) == 0.0
    x = rand(4, 2)
    said = sample(model, solver=DPMSolverV3(tables), grid=tables.grid(), steps=5, initial=x)
    var = [model.process.at(t).data ** 2 * torch.tensor([0.3, 1.7]) + model.process.at(t).noise ** 2 for t in (1, 1e-3)]
    torch.testing.assert_close(said, (var[1] / var[0]).sqrt() * x, rtol=1e-3, atol=0)


def test_states_of_a_path_are_those_of_ddim():
    model = gaussian(VP, [0.0, 0.0], std=0.0001)  # E[z] = x / noise nearly: the path is a straight line in y
    seen = []

    class Watch:
        process, shape = model.process, model.shape

        def __call__(self, x, t, cond=None):
            primal, tangent = torch.autograd.forward_ad.unpack_dual(x)
            if tangent is not None:  # at a node, not at its neighbours
                seen.append((self.process.at(t).t, primal))
            return model(x, t, cond)

    tables = measure_statistics(Watch(), samples=3, nodes=8, rng=0, dtype=torch.float64)
    assert [t for t, _ in seen] == pytest.approx(tables.times.tolist())
    first, last = seen[0][1], seen[-1][1]
    through = sample(model, solver=DDIM(), grid=tables.times, initial=first)
    torch.testing.assert_close(last, through, rtol=1e-6, atol=1e-6)
    assert tables.samples == 3 and tables.shape == (2,)


def test_batches_and_float32_change_nothing_but_round_off():
    model = oracle()
    data = model.sample(40, rng=0, dtype=torch.float64)
    whole, cut = (measure_statistics(model, data=data, nodes=20, batch=b, rng=0) for b in (64, 7))
    for name in ("l", "s", "b"):
        torch.testing.assert_close(getattr(whole, name), getattr(cut, name), rtol=1e-9, atol=1e-9)
    label = {"label": torch.arange(40) % 2}
    guided = Free(model, scale=2.0)
    single = measure_statistics(guided, data=data.float(), cond=label, nodes=20, rng=torch.Generator().manual_seed(0))
    assert single.guidance == {"type": "Free", "scale": 2.0} and torch.isfinite(single.s).all()


class Whole(nn.Module):
    """Knows whole-numbered times only."""

    def forward(self, x, time, cond):
        return torch.tanh(x) * (0.2 + 0.8 * torch.sin(time.round().double() / 640.0))[:, None]


class Any(nn.Module):
    def forward(self, x, time, cond):
        return torch.tanh(x) * (0.2 + 0.8 * torch.sin(time.double() / 640.0))[:, None]


def test_models_of_whole_numbered_times_are_measured_by_difference_quotients():
    process, data = PROCESSES["sd"], rand(64, 2)
    rough, exact = (
        measure_statistics(
            Denoiser(net, process, "noise", Plain(index=True)), data=data, nodes=40, rng=0, rate="forward"
        )
        for net in (Whole(), Any())
    )
    torch.testing.assert_close(rough.l, exact.l, rtol=0, atol=2e-3)
    assert float(exact.s.abs().max()) > 0.5 and float(exact.b.abs().max()) > 0.2
    torch.testing.assert_close(rough.s, exact.s, rtol=0, atol=0.05)
    torch.testing.assert_close(rough.b, exact.b, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: measure_statistics(oracle(), nodes=10), "one number of states"),
        (lambda: measure_statistics(oracle(), data=rand(3, 2), samples=4, nodes=10), "one number of states"),
        (lambda: measure_statistics(oracle(), samples=0, nodes=10), "at least one"),
        (lambda: measure_statistics(oracle(), samples=2, nodes=0), "at least 1"),
        (lambda: measure_statistics(oracle(), samples=2, nodes=9, rate="forwards"), "Did you mean"),
        (lambda: measure_statistics(oracle(), samples=2, nodes=9, start=0.2, end=0.4), "noisy time to a cleaner"),
        (lambda: measure_statistics(oracle(), samples=2, nodes=9, end=0.0), "noisy time to a cleaner"),
        (lambda: measure_statistics(oracle(), data=torch.ones(2, 2).long(), nodes=9), "floating point"),
        (lambda: measure_statistics(Denoiser(Any(), VP), samples=2, nodes=9), "shape of a sample"),
        (lambda: measure_statistics(Denoiser(Any(), Bridge()), samples=2, nodes=9), "from noise to data"),
        (
            lambda: measure_statistics(SimpleNamespace(process=Joint({"a": VP})), samples=2, nodes=9),
            "from noise to data",
        ),
    ],
)
def test_measuring_refuses(make, match):
    with pytest.raises((BadValue, BadType, Incompatible), match=match):
        make()


def test_the_change_between_nodes_tends_to_the_derivative_at_them():
    model = oracle()
    data, gaps = model.sample(40, rng=0, dtype=torch.float64), []
    for nodes in (20, 40):
        a, b = (measure_statistics(model, data=data, nodes=nodes, rng=0, rate=r) for r in ("difference", "forward"))
        assert torch.equal(a.l, b.l)
        step = nodes // 20
        gaps.append(float((a.b - b.b)[step * 8 : step * 18 : step].abs().max()))
    assert gaps[0] > 0.01 and 3.0 < gaps[0] / gaps[1] < 5.0


def test_a_rest_that_is_small_beside_the_linear_part_is_seen():
    """At the noisy end of a ring of components f is a millionth of the linear part: s must not be its error."""
    angles = torch.arange(4, dtype=torch.float64) * (torch.pi / 2.0)
    ring = mixture(VP, torch.stack([angles.cos(), angles.sin()], 1), stds=0.1)
    data = ring.sample(64, rng=0, dtype=torch.float64)
    tables = measure_statistics(ring, data=data, nodes=60, rng=0)
    assert float(tables.s.abs().max()) < 12.0


# Guidance as it is noted


def test_guidance_in_words():
    model = oracle()
    assert guidance_of(model) is None and guidance_of(Given(model, {"label": torch.tensor([0])})) is None
    assert guidance_of(Free(model, scale=1.0)) is None
    assert guidance_of(Given(Free(model, scale=3.0))) == {"type": "Free", "scale": 3.0}
    assert guidance_of(Free(model, scale=3, negative={"label": torch.tensor([0])})) == {"type": "Free", "scale": 3.0}
    limited = guidance_of(Free(model, scale=3.0, interval=(0.1, 0.8)))
    assert limited == {"type": "Free", "scale": 3.0, "interval": [0.1, 0.8]}
    nested = guidance_of(Classifier(Free(model, scale=2.0), test_guidance_in_words, scale=4.0))
    assert nested["denoiser"] == {"type": "Free", "scale": 2.0} and nested["scale"] == 4.0
    assert nested["log_prob"].endswith("test_guidance_in_words")
    json.dumps(nested)


def test_only_the_model_they_were_measured_on():
    model, label = oracle(), {"label": torch.tensor([0, 1, 0])}
    tables = measure_statistics(Free(model, scale=2.0), cond=label, nodes=20, rng=0, dtype=torch.float64)
    solver = DPMSolverV3(tables)

    def draw(denoiser, **options):
        options = {"grid": tables.grid(), "steps": 4} | options
        return sample(denoiser, solver=solver, cond=label, seed=0, **options)

    assert draw(Free(model, scale=2.0)).isfinite().all()
    assert draw(Given(Free(model, scale=2.0))).isfinite().all()
    for other in (model, Free(model, scale=3.0), Free(model, scale=2.0, interval=(0.2, 0.8))):
        with pytest.raises(Incompatible, match="once for each scale"):
            draw(other)
    with pytest.raises(Incompatible, match="samples of shape"):
        draw(mixture(VP, [[0.0] * 3, [1.0] * 3], stds=0.3, labels=[0, 1]))
    with pytest.raises(Incompatible, match="this model follows"):
        draw(Free(oracle(PROCESSES["cosine"]), scale=2.0))
    with pytest.raises(BadValue, match="outside of"):
        draw(Free(model, scale=2.0), grid=[0.9, 0.5, 1e-4], steps=None)
    with pytest.raises(BadValue, match="at least as many intervals"):
        draw(Free(model, scale=2.0), steps=21)
    rows = torch.tensor([[1.0, 0.9, 0.8], [0.5, 0.5, 0.5]], dtype=torch.float64)
    with pytest.raises(Incompatible, match="one time for the whole batch"):
        draw(Free(model, scale=2.0), grid=rows, steps=None)


def test_a_table_of_the_same_numbers_is_the_same_process():
    given = Discrete.from_alphas_cumprod(Discrete.stable_diffusion().table.float().double())
    tables = ModelStatistics.constant(PROCESSES["sd"], nodes=20)
    assert tables.fits(Gaussian(given)) and not tables.fits(Gaussian(Discrete.ddpm()))


# Tables and files


def test_a_file_keeps_everything(tmp_path):
    model, label = oracle(PROCESSES["sd"]), {"label": torch.tensor([0, 1, 0])}
    tables = measure_statistics(Free(model, scale=7.5), cond=label, nodes=12, rng=0, dtype=torch.float64)
    tables.save(tmp_path / "tables.safetensors")
    again = ModelStatistics.load(tmp_path / "tables.safetensors")
    for f in dataclasses.fields(tables):
        a, b = getattr(tables, f.name), getattr(again, f.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    twice = [
        sample(Free(model, scale=7.5), solver=DPMSolverV3(t), grid=t.grid("time"), steps=5, cond=label, seed=1)
        for t in (tables, again)
    ]
    assert torch.equal(*twice)
    stored = json.loads(json.dumps(to_config(DPMSolverV3(tables, order=3))))
    assert torch.equal(from_config(stored).statistics.l, tables.l) and from_config(stored).order == 3


def test_files_of_another_kind(tmp_path):
    write_tensors(tmp_path / "other.safetensors", {"l": torch.ones(3)})
    with pytest.raises(BadFile, match="holds no statistics"):
        ModelStatistics.load(tmp_path / "other.safetensors")
    with pytest.raises(BadFile, match="no such file"):
        ModelStatistics.load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"xyz")
    with pytest.raises(BadFile, match="not a whole"):
        ModelStatistics.load(tmp_path / "cut.safetensors")


def test_the_authors_layout(tmp_path):
    tables = smooth(nodes=30)
    np.savez(tmp_path / "l.npz", l=tables.l.numpy())
    np.savez(tmp_path / "sb.npz", s=tables.s.numpy(), b=tables.b.numpy().astype(np.float32))
    read = ModelStatistics.from_npz(tmp_path, VP, start=1.0, end=1e-3, guidance=7.5, samples=1024)
    assert torch.equal(read.l, tables.l) and torch.equal(read.s, tables.s) and read.ends == tables.ends
    assert read.shape == (2,) and read.guidance == {"type": "Free", "scale": 7.5} and read.samples == 1024
    with pytest.raises(Incompatible, match="once for each scale"):
        sample(oracle(), solver=DPMSolverV3(read), grid=read.grid(), steps=3, num=2, seed=0)
    np.savez(tmp_path / "sb.npz", s=tables.s.numpy())
    with pytest.raises(BadFile, match="lacks the arrays b"):
        ModelStatistics.from_npz(tmp_path, VP, start=1.0, end=1e-3)
    (tmp_path / "sb.npz").write_bytes(b"not an archive")
    with pytest.raises(BadFile, match="not a file of arrays"):
        ModelStatistics.from_npz(tmp_path, VP, start=1.0, end=1e-3)
    (tmp_path / "sb.npz").unlink()
    with pytest.raises(BadFile, match="no such file"):
        ModelStatistics.from_npz(tmp_path, VP, start=1.0, end=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"l": torch.full((121, 2), float("nan"))}, "table l isn't finite at node 0"),
        ({"s": torch.ones(120, 2)}, "one row per node"),
        ({"b": torch.ones(121, 2).long()}, "tensor of floats"),
        ({"shape": (3,)}, "samples of shape"),
        ({"ends": (1.0, -1.0)}, "lam rises"),
        ({"process": Bridge()}, "from noise to data"),
    ],
)
def test_tables_refuse(change, match):
    with pytest.raises((BadValue, BadType), match=match):
        dataclasses.replace(smooth(), **change)


def test_the_solver_and_grids_refuse():
    with pytest.raises(BadType, match="takes the statistics"):
        DPMSolverV3("tables.npz")
    with pytest.raises(BadValue, match="order must be one of"):
        DPMSolverV3(smooth(), order=4)
    with pytest.raises(BadValue, match="corrector_until"):
        DPMSolverV3(smooth(), corrector_until=2.0)
    with pytest.raises(BadValue, match="Did you mean"):
        smooth().grid("logsnr")


@pytest.mark.parametrize("spacing", ["log_snr", "time", "quadratic", "karras"])
def test_grids_cover_the_range(spacing):
    tables = ModelStatistics.constant(PROCESSES["sd"], nodes=250, end=0.001)
    times = tables.grid(spacing).times(tables.process, 7)
    assert len(times) == 8 and bool((times.diff() < 0).all())
    assert float(times[0]) == pytest.approx(tables.start) and float(times[-1]) == pytest.approx(tables.end)
    x = sample(oracle(tables.process), solver=DPMSolverV3(tables), grid=tables.grid(spacing), steps=7, num=2, seed=0)
    assert x.isfinite().all()


def test_metadata_is_readable():
    assert "ModelStatistics(120 intervals, shape any, t 1 .. 0.001)" in repr(DPMSolverV3(smooth()))
    assert len(list(itertools.islice(smooth().nodes, 3))) == 3 and read_tensors
