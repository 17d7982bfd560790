"""Tiny video pipelines of the real classes with random weights, built without a download."""

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tiny import t5_encoder, t5_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
)


def stable_video_diffusion(seed=0, frames=3, **options):
    torch.manual_seed(seed)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32, 64), num_attention_heads=2, layers_per_block=1, num_frames=frames,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=32,
        addition_time_embed_dim=32, projection_class_embeddings_input_dim=96, in_channels=8, out_channels=4,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, projection_dim=32, num_hidden_layers=2, num_attention_heads=4,
        image_size=224, patch_size=56,
    ))  # fmt: skip
    scheduler = EulerDiscreteScheduler(**{
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "interpolation_type": "linear",
        "num_train_timesteps": 1000, "prediction_type": "v_prediction", "sigma_max": 700.0, "sigma_min": 0.002,
        "steps_offset": 1, "timestep_spacing": "leading", "timestep_type": "continuous", "use_karras_sigmas": True,
        **options,
    })  # fmt: skip
    pipe = StableVideoDiffusionPipeline(vae.eval(), encoder.eval(), unet.eval(), scheduler, CLIPImageProcessor())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox(seed=0, rotary=True, pairs=False, scheduler=CogVideoXDDIMScheduler):
    """5B with rotary embeddings; 2B without; ``pairs`` is version 1.5, whose patches span two latent frames."""
    torch.manual_seed(seed)
    version = {"patch_size_t": 2, "patch_bias": False} if pairs else {}
    net = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=12, use_rotary_positional_embeddings=rotary, **version,
    )  # fmt: skip
    blocks = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, **blocks
    )
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    steps = scheduler(
        **betas, prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0 if rotary else 3.0,
        timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    pipe = CogVideoXPipeline(t5_tokenizer(), t5_encoder(), vae.eval(), net.eval(), steps)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_transformer(seed):
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=32, freq_dim=32,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip


def wan(seed=0, stages=1, boundary=0.875, per_token=False, scheduler=None):
    """Wan 2.1; in two stages 2.2; told a time per token 2.2's small one."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    encoder = t5_encoder(UMT5EncoderModel, UMT5Config)
    steps = scheduler or UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    second = {"transformer_2": wan_transformer(seed + 2), "boundary_ratio": boundary} if stages == 2 else {}
    pipe = WanPipeline(
        t5_tokenizer(), encoder, vae.eval(), steps, wan_transformer(seed + 1), expand_timesteps=per_token, **second
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
