"""Networks: ``net(x, time, cond) -> Tensor`` or ``(Tensor, aux)``."""

from condiff.networks.attention import Attention, set_attention, use_attention
from condiff.networks.base import Network
from condiff.networks.dit import DiT, DiTConfig
from condiff.networks.embedding import TimeEmbedding
from condiff.networks.layout import Layout, layout_of
from condiff.networks.mlp import MLP, MLPConfig
from condiff.networks.unet import UNet, UNetConfig

__all__ = [
    "MLP",
    "Attention",
    "DiT",
    "DiTConfig",
    "Layout",
    "MLPConfig",
    "Network",
    "TimeEmbedding",
    "UNet",
    "UNetConfig",
    "layout_of",
    "set_attention",
    "use_attention",
]
