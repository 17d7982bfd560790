"""Tiny pipelines of the real classes with random weights, built without a download."""

import inspect
import string

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

PROMPTS = ["a red fox", "two cats, one mat"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # a pipeline's latents and ours, in float32


def latents(shape=(2, 4, 8, 8), seed=3):
    """Noise that both sides begin with."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokenizer():
    """Single letters and the ends of words, as CLIP's tokenizer spells an unknown word."""
    letters = list(string.ascii_lowercase + string.digits + ",.-' ")
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=16)


def text_config():
    count = len(tokenizer())
    return CLIPTextConfig(
        vocab_size=count, hidden_size=32, intermediate_size=37, projection_dim=32, num_attention_heads=4,
        num_hidden_layers=2, max_position_embeddings=16, bos_token_id=count - 2, eos_token_id=count - 1,
        pad_token_id=count - 1,
    )  # fmt: skip


def vae(channels=4, **options):
    return AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    ).eval()  # fmt: skip


def ddpm(seed=0, **options):
    torch.manual_seed(seed)
    net = UNet2DModel(
        sample_size=8, in_channels=3, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **{"out_channels": 3, **options},
    )  # fmt: skip
    return DDPMPipeline(net, DDPMScheduler(clip_sample=False))


def text_unet(dims=32, **options):
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=dims, attention_head_dim=2,
        norm_num_groups=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **options,
    ).eval()  # fmt: skip


def stable_diffusion(seed=0, prediction_type="epsilon", unet=None, **options):
    """Stable Diffusion 1.5's classes; with ``v_prediction`` and zero terminal SNR, 2.1's."""
    torch.manual_seed(seed)
    unet = text_unet() if unet is None else unet
    scheduler = DDIMScheduler(
        **STABLE, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type, **options
    )
    pipe = StableDiffusionPipeline(
        vae(), CLIPTextModel(text_config()).eval(), tokenizer(), unet, scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl(seed=0, zeros=True, channels=4):
    torch.manual_seed(seed)
    size = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = text_unet(64, **size, in_channels=channels, projection_class_embeddings_input_dim=6 * 8 + 32)
    encoders = CLIPTextModel(text_config()).eval(), CLIPTextModelWithProjection(text_config()).eval()
    scheduler = DDIMScheduler(**STABLE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionXLPipeline(
        vae(), *encoders, tokenizer(), tokenizer(), unet, scheduler, force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dit(seed=0, classes=7, learned=True):
    torch.manual_seed(seed)
    net = DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, num_attention_heads=2, attention_head_dim=8, in_channels=4,
        out_channels=8 if learned else 4, num_embeds_ada_norm=classes, norm_type="ada_norm_zero",
        norm_elementwise_affine=False, activation_fn="gelu-approximate",
    )  # fmt: skip
    torch.nn.init.normal_(net.proj_out_2.weight, std=0.2)
    names = {i: f"class {i}" for i in range(classes)}
    pipe = DiTPipeline(net.eval(), vae(), DDIMScheduler(clip_sample=False), id2label=names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3(seed=0, t5=False, dynamic=False, layers=1, **options):
    torch.manual_seed(seed)
    net = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=layers, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4, **options,
    )  # fmt: skip
    encoders = [CLIPTextModelWithProjection(text_config()).eval() for _ in range(2)]
    pipe = StableDiffusion3Pipeline(
        net.eval(), FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic),
        vae(shift_factor=0.06, use_quant_conv=False), encoders[0], tokenizer(), encoders[1], tokenizer(),
        t5_encoder(width=64) if t5 else None, t5_tokenizer() if t5 else None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def t5_tokenizer(kind=T5TokenizerFast):
    letters = string.ascii_lowercase + string.digits + ",.-'"
    words = ["<pad>", "</s>", "<unk>", "▁", *letters, *("▁" + c for c in letters)]
    return kind(vocab=[(word, -float(i > 2)) for i, word in enumerate(words)], extra_ids=0)


def t5_encoder(kind=T5EncoderModel, config=T5Config, width=32):
    return kind(config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, dropout_rate=0.0,
    )).eval()  # fmt: skip


def flux(seed=0, guidance=True, dynamic=True):
    """FLUX.1-dev; without guidance and dynamic shifts, schnell."""
    torch.manual_seed(seed)
    net = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    )  # fmt: skip
    shift = {"use_dynamic_shifting": True, "shift": 3.0} if dynamic else {"shift": 1.0}
    pipe = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(**shift), vae(shift_factor=0.06, use_quant_conv=False),
        CLIPTextModel(text_config()).eval(), tokenizer(), t5_encoder(), t5_tokenizer(), net.eval(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def randomised(net, seed=5, std=0.1):
    """A network without its zeros: those that a ControlNet begins with say nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += std * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def controlled(kind, pipe, count=1, **options):
    """A ControlNet variant of a pipeline, with its modules."""
    nets = [
        randomised(
            ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16), **options), seed=5 + i
        )
        for i in range(count)
    ]
    return with_controls(kind, pipe, nets)


def controlled_sd3(pipe, count=1, zeros=True):
    nets = []
    for i in range(count):
        net = SD3ControlNetModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
            force_zeros_for_pooled_projection=zeros,
        )  # fmt: skip
        nets.append(randomised(net, seed=5 + i))
    return with_controls(StableDiffusion3ControlNetPipeline, pipe, nets)


def controlled_flux(pipe, count=1):
    nets = []
    for i in range(count):
        net = FluxControlNetModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
            guidance_embeds=True,
        )  # fmt: skip
        nets.append(randomised(net, seed=5 + i))
    return with_controls(FluxControlNetPipeline, pipe, nets)


def with_controls(kind, pipe, nets):
    parts = {name: part for name, part in pipe.components.items() if name in inspect.signature(kind).parameters}
    extra = (
        {"requires_safety_checker": False} if "requires_safety_checker" in inspect.signature(kind).parameters else {}
    )
    if "add_watermarker" in inspect.signature(kind).parameters:
        extra = {"add_watermarker": False, "force_zeros_for_empty_prompt": pipe.config.force_zeros_for_empty_prompt}
    out = kind(**parts, controlnet=nets if len(nets) > 1 else nets[0], **extra)
    out.set_progress_bar_config(disable=True)
    return out
