"""SAEs trained on this machine: one for a model that has none, and the further ones that notebooks compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sae_lens.saes.sae import SAEMetadata

from prism.data import corpus_batch, load_corpus
from prism.models import harvest
from prism.sae import SaeConfig, SparseAutoencoder, save_saelens
from prism.training.loop import TrainConfig, train


def train_for_model(model, name: str, corpus: str, hook_name: str, context: int, n_tokens: int, folder: Path) -> None:
    """Train an SAE of modest size on one hook of a model and save it in SAELens' format.

    Args:
        name: what the metadata calls the model.
        corpus: name for `data.load_corpus`; its texts are read by the model's own tokenizer.
        n_tokens: activations to harvest (BOS and padding left out); training passes over them four times.
    """
    batch = corpus_batch(load_corpus(corpus), model.tokenizer, context, n_tokens)
    stream = zip(harvest(model, batch.tokens, hook_name), batch.keep.split(32), strict=True)
    activations = np.concatenate([x[keep].half().numpy() for x, keep in stream])[:n_tokens]
    d_in = activations.shape[1]
    config = TrainConfig(tokens=4 * len(activations), dead_after=len(activations) // 2)
    trained = train(activations, SaeConfig(d_in, 8 * d_in), config, progress=f"SAE at {hook_name}")
    text = f"{len(activations):,} tokens of the corpus '{corpus}'"
    save_saelens(trained, folder, metadata_of(trained, config, name, hook_name, context, text))


def metadata_of(
    sae: SparseAutoencoder, config: TrainConfig, model: str, hook_name: str, context: int, text: str
) -> SAEMetadata:
    """What SAELens keeps beside an SAE's weights: trained without weight processing, BOS in front but left out."""
    return SAEMetadata(
        model_name=model,
        hook_name=hook_name,
        hook_head_index=None,
        context_size=context,
        prepend_bos=True,
        exclude_special_tokens=False,  # end tokens between documents are trained on, position 0 is not
        model_from_pretrained_kwargs={},
        training_samples=config.steps * config.batch,
        training_data=text,
        training_architecture=sae.config.architecture,
    )
