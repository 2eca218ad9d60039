"""Prism: a hands-on curriculum for sparse-autoencoder interpretability of language models."""

__version__ = "0.1.0"
