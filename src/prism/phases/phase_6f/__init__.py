"""Phase 6f: monitors for kinds of text, an audit with counterfactual pairs, and the edit of a concept."""
