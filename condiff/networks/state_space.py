"""A diagonal linear state space along a sequence, in both directions: S4D (Gu 2022, arXiv 2206.11893).

Each channel has N/2 complex states with ``a = exp(dt A)``, ``A = -exp(.) + i(.)``, and the input held over a step
(zero-order hold), ``b = (a - 1) / A``::

    h_k = a h_(k-1) + b u_k        y_k = 2 Re(c h_k) + d u_k

which is a convolution with ``K_l = 2 Re sum_n c_n b_n a_n^l``: worked out once, applied by FFT, L log L. In both
directions one more such kernel runs from the end. A position sees all others, at any length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from condiff.errors import BadValue
from condiff.typing import Float


class StateSpace(nn.Module):
    """``(B, L, width) -> (B, L, width)``, linear, along L, each channel by itself.

    Args:
        width: channels.
        states: N, real numbers of state per channel and direction, even.
        bidirectional: also from the end.
        steps: smallest and largest step dt that channels begin with; 1 / dt is about how far a channel sees.
    """

    def __init__(
        self,
        width: int,
        states: int = 64,
        bidirectional: bool = True,
        steps: tuple[float, float] = (1e-3, 1e-1),
    ) -> None:
        super().__init__()
        if states < 2 or states % 2:
            raise BadValue(f"states come in conjugate pairs, an even number of at least 2, got {states}")
        if not 0.0 < steps[0] <= steps[1]:
            raise BadValue(f"steps are (smallest, largest) above 0, got {steps}")
        self.directions = 1 + bidirectional
        half, (low, high) = states // 2, map(math.log, steps)
        self.log_dt = nn.Parameter(torch.rand(width) * (high - low) + low)
        self.log_decay = nn.Parameter(torch.full((width, half), math.log(0.5)))
        self.frequency = nn.Parameter((math.pi * torch.arange(half, dtype=torch.float32)).repeat(width, 1))
        # Two real numbers in place of complex ones, which optimizers, averages and half precision know less of.
        self.c = nn.Parameter(torch.randn(self.directions, width, half, 2) * math.sqrt(0.5))
        self.d = nn.Parameter(torch.randn(width))

    def discrete(self) -> tuple[Tensor, Tensor]:
        """``(log a, c b)``: complex (width, N/2) and (directions, width, N/2)."""
        A = torch.complex(-self.log_decay.float().exp(), self.frequency.float())
        log_a = self.log_dt.float().exp()[:, None] * A
        return log_a, torch.view_as_complex(self.c.float().contiguous()) * (log_a.exp() - 1.0) / A

    def kernel(self, length: int) -> Float[Tensor, "directions width length"]:
        """``K_l`` for l = 0 ... length - 1."""
        log_a, cb = self.discrete()
        powers = torch.exp(log_a[..., None] * torch.arange(length, device=log_a.device))
        return 2.0 * torch.einsum("dhn,hnl->dhl", cb, powers).real

    def forward(self, u: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        length = u.shape[1]
        # Causal taps at the front, those from the end wrapped to the back: one circular convolution of length 2 L.
        taps = self.kernel(length)
        whole = torch.nn.functional.pad(taps[0], (0, length))
        if self.directions == 2:
            whole = whole + torch.nn.functional.pad(taps[1].flip(-1), (length, 0)).roll(1, -1)
        spectrum = torch.fft.rfft(whole.mT, dim=0)
        out = torch.fft.irfft(torch.fft.rfft(u.float(), n=2 * length, dim=1) * spectrum, n=2 * length, dim=1)
        return out[:, :length].to(u.dtype) + self.d.to(u.dtype) * u
