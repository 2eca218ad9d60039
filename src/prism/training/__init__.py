"""Training SAEs quickly: one dense product a step, everything else over the active entries only."""

from prism.training.family import metadata_of, train_for_model
from prism.training.loop import TrainConfig, Trainer, train
from prism.training.monitor import Monitor
from prism.training.sources import ActivationStream
from prism.training.steps import dense_gradients, sparse_gradients
