"""Quick twins of plain maths, each held equal to it by a test. Nothing here is needed to understand the rest."""

from prism.fast.encoder import SparseEncoder
from prism.fast.gradients import SparseGradients
from prism.fast.passes import stripped
