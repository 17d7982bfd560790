"""Networks: ``net(x, time, cond) -> Tensor`` or ``(Tensor, aux)``."""

from condiff.networks.attention import Attention, set_attention, use_attention
from condiff.networks.base import Network
from condiff.networks.branched import Branched, BranchedConfig
from condiff.networks.dit import DiT, DiTConfig
from condiff.networks.embedding import TimeEmbedding
from condiff.networks.hooks import features, read, replace
from condiff.networks.layout import Layout, layout_of
from condiff.networks.mlp import MLP, MLPConfig
from condiff.networks.surgery import Swap, operations, soften
from condiff.networks.token_transformer import TokenTransformer, TokenTransformerConfig
from condiff.networks.two_sided import TwoSided, TwoSidedConfig
from condiff.networks.unet import UNet, UNetConfig

__all__ = [
    "MLP",
    "Attention",
    "Branched",
    "BranchedConfig",
    "DiT",
    "DiTConfig",
    "Layout",
    "MLPConfig",
    "Network",
    "Swap",
    "TimeEmbedding",
    "TokenTransformer",
    "TokenTransformerConfig",
    "TwoSided",
    "TwoSidedConfig",
    "UNet",
    "UNetConfig",
    "features",
    "layout_of",
    "operations",
    "read",
    "replace",
    "set_attention",
    "soften",
    "use_attention",
]
