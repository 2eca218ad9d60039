"""Training SAEs quickly: one dense product a step, everything else over the active entries only."""

from prism.training.family import (
    FAMILY,
    family_front,
    held_out_batch,
    held_out_documents,
    load_family,
    metadata_of,
    train_for_model,
    trained_family,
    training_activations,
)
from prism.training.loop import TrainConfig, Trainer, resample, train
from prism.training.monitor import Monitor
from prism.training.together import RollingBuffer, Run, train_together
