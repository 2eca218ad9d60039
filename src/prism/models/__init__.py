"""Models and their SAEs by name: the registry, loading, and harvesting activations."""

from prism.models.harvesting import activations_at, check_hook, harvest, harvest_kept, kept_activations
from prism.models.loading import load_model, random_model, weight_processing
from prism.models.massive import is_massive, massive_norm, ordinary, residual_hook, unless_massive, without_massive
from prism.models.registry import MODELS, SMOLLM2, ModelSpec, SaeSpec, get_spec
from prism.models.saes import FAMILY, load_family, load_sae, metadata_of, trained_family
