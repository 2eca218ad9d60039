"""Phase 4, an SAE built and trained: what it reads, its figures, its exercises and the six broken runs."""
