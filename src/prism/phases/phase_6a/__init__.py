"""Phase 6a: steering; what a feature adds to a text, what that costs, and what a control does as well."""
