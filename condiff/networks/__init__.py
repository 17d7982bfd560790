"""Networks: ``net(x, time, cond) -> Tensor`` or ``(Tensor, aux)``."""

from condiff.networks.adapters import (
    LoRA,
    attach_lora,
    detach_lora,
    keep_trained,
    load_lora,
    lora_names,
    lora_state,
    save_lora,
    scale_lora,
)
from condiff.networks.attention import Attention, set_attention, use_attention
from condiff.networks.attention_control import AttentionControl, Mixing
from condiff.networks.base import Network
from condiff.networks.branched import Branched, BranchedConfig
from condiff.networks.cache import FrameCache, KVQueue
from condiff.networks.dit import DiT, DiTConfig
from condiff.networks.embedding import TimeEmbedding
from condiff.networks.gated_series import GatedSeries, GatedSeriesConfig
from condiff.networks.hooks import features, read, replace
from condiff.networks.layout import Layout, layout_of
from condiff.networks.mlp import MLP, MLPConfig
from condiff.networks.pair_files import load_pair, save_pair
from condiff.networks.pairing import Pairing, Tie, add_pair, remove_pair
from condiff.networks.state_space import StateSpace
from condiff.networks.surgery import Swap, operations, soften
from condiff.networks.token_transformer import TokenTransformer, TokenTransformerConfig
from condiff.networks.two_sided import TwoSided, TwoSidedConfig
from condiff.networks.unet import UNet, UNetConfig
from condiff.networks.video_transformer import VideoTransformer, VideoTransformerConfig

__all__ = [
    "MLP",
    "Attention",
    "AttentionControl",
    "Branched",
    "BranchedConfig",
    "DiT",
    "DiTConfig",
    "FrameCache",
    "GatedSeries",
    "GatedSeriesConfig",
    "KVQueue",
    "Layout",
    "LoRA",
    "MLPConfig",
    "Mixing",
    "Network",
    "Pairing",
    "StateSpace",
    "Swap",
    "Tie",
    "TimeEmbedding",
    "TokenTransformer",
    "TokenTransformerConfig",
    "TwoSided",
    "TwoSidedConfig",
    "UNet",
    "UNetConfig",
    "VideoTransformer",
    "VideoTransformerConfig",
    "add_pair",
    "attach_lora",
    "detach_lora",
    "features",
    "keep_trained",
    "layout_of",
    "load_lora",
    "load_pair",
    "lora_names",
    "lora_state",
    "operations",
    "read",
    "remove_pair",
    "replace",
    "save_lora",
    "save_pair",
    "scale_lora",
    "set_attention",
    "soften",
    "use_attention",
]
