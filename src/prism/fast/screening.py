"""Which pre-activations can matter, found with a product in bfloat16 that never undershoots.

With matrix units or instructions for bfloat16 a product costs half to a sixth of the float32 one, but rounds each
factor to 8 bits. Let `x = x̃ + δx` and `w = w̃ + δw` be rounded so. Then, by Cauchy and Schwarz,

    ⟨x, w⟩ = ⟨x̃, w̃⟩ + ⟨δx, w⟩ + ⟨x̃, δw⟩ ≤ ⟨x̃, w̃⟩ + ‖δx‖ ‖w‖ + ‖x̃‖ ‖δw‖

and the right-hand side is itself a product, of rows made longer: `[x̃, ‖δx‖, ‖x̃‖, 1, 1]` and `[w̃, ‖w‖, ‖δw‖, b, b']`.
All that is below a bar in this product is below it in truth. The few others get their values in float32.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**23  # entries of a product looked at at once, so that they are still in cache (16 MB)
LARGEST, SMALLEST = 1e36, 2.0**-40  # beyond the one float32 would overflow; below the other a bound might vanish
SMALL = 2**20  # weights of an encoder, below which a screen saves nothing
CROWDED = 1 / 40  # share of all entries that reach the bar, from which on float32 is the quicker way
PAUSE = 8  # batches that go by float32 after a crowded one


def can_pay(W: Float[Tensor, "..."]) -> bool:
    """Whether a screen may be the quicker way with an encoder's weights like these."""
    return W.dtype == torch.float32 and W.numel() >= SMALL


class Screen:
    """Upper bounds of `W x + b`, by a product in bfloat16.

    Args:
        d_sae, d_in: shape of `W`.
        rows: of `x`, at most; block: rows in one product, at most. The memory for both is made here, once.
    """

    def __init__(self, d_sae: int, d_in: int, rows: int, block: int, device: torch.device | str = "cpu"):
        self.d_in = d_in
        self.slop = (d_in + 64) * 2.0**-22  # of ‖x‖‖w‖: what either product may lose by adding up in float32, doubled
        width = -(-(d_in + 4) // 32) * 32  # a multiple of what matrix units take at once
        self.W, self.x = (torch.zeros(n, width, dtype=torch.bfloat16, device=device) for n in (d_sae, rows))
        self.out = torch.empty(block, d_sae, dtype=torch.bfloat16, device=device)

    def load(self, W: Float[Tensor, "d_sae d_in"], b: Float[Tensor, " d_sae"]) -> None:
        """Take the weights."""
        norm, lost = _rounded(W, self.W[:, : self.d_in])
        self.largest = [float(some.max()) for some in (norm, lost, b.abs())]
        high = b.bfloat16().float()
        rest = b - high + self.slop * b.abs()
        columns = [_up(norm), _up(lost), high, rest + rest.abs() * 2.0**-7]
        self.W[:, self.d_in : self.d_in + 4] = torch.stack(columns, dim=1)

    def covers(self, x: Float[Tensor, "rows d_in"]) -> bool:
        """Take the rows; False where there are none or too many, or where no bound holds: something is not finite, or
        so large that float32 overflows.
        """
        if not 0 < len(x) <= len(self.x):
            return False
        rows = self.x[: len(x)]
        norm, lost = _rounded(x, rows[:, : self.d_in])
        lost += 2 * self.slop * norm
        rows[:, self.d_in : self.d_in + 4] = torch.stack([_up(lost), _up(norm), *2 * [torch.ones_like(norm)]], dim=1)
        w_norm, w_lost, b = self.largest
        over = 2.25 * (lost.clamp_min(SMALLEST) * (w_norm + SMALLEST) + norm.clamp_min(SMALLEST) * (w_lost + SMALLEST))
        self.over = (over + b * 2.0**-8)[:, None]
        return (float(norm.max()) + 1) * (w_norm + 1) + b < LARGEST

    def bounds(self, rows: slice) -> tuple[Float[Tensor, "rows d_sae"], Float[Tensor, "rows 1"]]:
        """Upper bounds for some of the rows, until the next call; and how much too large they can be, at most.

        That is before the bounds are rounded to bfloat16, which keeps their order.
        """
        x, matmul = self.x[rows], torch.backends.cuda.matmul
        reduced, matmul.allow_bf16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction, False
        try:  # a GPU may else add up parts of a sum in bfloat16
            return torch.mm(x, self.W.T, out=self.out[: len(x)]), self.over[rows]
        finally:
            matmul.allow_bf16_reduced_precision_reduction = reduced


def _rounded(x: Float[Tensor, "rows d"], out: Tensor) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Writes `x` in bfloat16; the lengths of its rows (the longer of before and after), and of what they lost."""
    norm, lost = x.new_empty(len(x)), x.new_empty(len(x))
    for first in range(0, len(x), 512):  # a block stays in cache
        part = slice(first, first + 512)
        out[part] = x[part]
        low = out[part].float()
        norm[part] = torch.maximum(x[part].norm(dim=1), low.norm(dim=1))
        lost[part] = low.sub_(x[part]).norm(dim=1)
    return norm, lost


def _up(length: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Lengths that are no shorter when they are rounded to bfloat16."""
    return length.clamp_min(SMALLEST) * (1 + 2.0**-7)
