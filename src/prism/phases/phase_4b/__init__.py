"""Phase 4b, the architectures."""
