"""Phase 0: superposition in toy models, and an SAE that undoes it."""
