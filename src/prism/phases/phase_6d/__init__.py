"""Phase 6d: descriptions of features, and whether they are true."""
