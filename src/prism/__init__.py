"""Prism: a hands-on curriculum for sparse-autoencoder interpretability of language models."""

__version__ = "0.1.0"

from prism.threads import share_the_machine

share_the_machine()
