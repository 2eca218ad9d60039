"""Sparse autoencoders from scratch: architectures behind one interface, and their exchange with SAELens."""

from prism.sae.architectures import BatchTopK, make_sae
from prism.sae.base import SaeConfig, SparseAutoencoder, dense_gradients, fold_scale
from prism.sae.saelens import check_settings, read_config, read_sae, ready, save_saelens, to_saelens
