"""Phase 6c, across layers."""
