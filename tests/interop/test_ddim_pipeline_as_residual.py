"""A diffusers DDIM pipeline read as residual and noise: ten steps of either are the same pictures."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import nn

from condiff.conditions import Condition
from condiff.denoiser import Denoiser
from condiff.interop import wrap
from condiff.process import Clocks, Ramps, Residual, Retimed
from condiff.sampling import DDIM, sample


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    for parameter in unet.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    pipe = DDIMPipeline(unet, DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_ten_steps_are_the_pipelines_pictures(pipe):
    theirs = pipe(2, torch.Generator().manual_seed(3), num_inference_steps=10, output_type="np").images
    start = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    model, nothing = wrap(pipe), {"y": Condition(torch.zeros(2, 3, 16, 16), "endpoint")}
    process = Residual.from_ddim(pipe.scheduler)
    readings = {
        "retimed": Retimed(model.denoiser, Residual.from_ddim(model.denoiser.process.schedule)),
        "as it is": Denoiser(model.denoiser.network, process, "noise", model.denoiser.precondition),
    }
    for name, reading in readings.items():
        x = sample(reading, initial=start, cond=nothing, solver=DDIM(), grid=model.grid(10))
        ours = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        assert float((ours - torch.from_numpy(theirs)).abs().max()) < 2e-5, name
    assert float(ours.std()) > 0.05


@torch.no_grad()
def test_the_model_on_rddms_ramps_and_in_another_order(pipe):
    """The same network on other residual schedules: the step is the paper's, with the converted heads."""
    model, x = wrap(pipe).denoiser, torch.randn(1, 3, 16, 16)
    nothing = {"y": Condition(torch.zeros(1, 3, 16, 16), "endpoint")}
    for schedule in (Ramps(), Clocks(base=Ramps(), residual=(0.0, 0.4, 1.0), noise=(0.0, 0.6, 1.0))):
        process = Residual(schedule=schedule)
        reading, (t, s) = Retimed(model, process), (process.at(0.9), process.at(0.6))
        out = sample(reading, initial=x, cond=nothing, solver=DDIM(), grid=[0.9, 0.6])
        said = reading(x, t, _conditions(nothing))
        expected = x - (t.source - s.source) * -said.x0 - (t.noise - s.noise) * said.noise
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def _conditions(entries):
    from condiff.conditions import as_conditions

    return as_conditions(entries)


def test_the_networks_weights_are_shared(pipe):
    model = wrap(pipe).denoiser
    assert isinstance(model.network, nn.Module)
    on = model.on(Residual.from_ddim(pipe.scheduler))
    assert next(on.parameters()) is next(model.parameters())
