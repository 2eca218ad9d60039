"""Phase 6b: what features do to a prediction, as gradients estimate it and as ablation finds it."""
