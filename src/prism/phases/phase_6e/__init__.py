"""Phase 6e, models of different size: places that they share, partners on one half of the texts tried on the other."""
