"""Training SAEs quickly, on activations of whatever model: one dense product a step, else the active entries only."""

from prism.training.loop import TrainConfig, train
from prism.training.monitor import Monitor
