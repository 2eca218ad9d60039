"""Phase 6c: features followed from layer to layer."""
