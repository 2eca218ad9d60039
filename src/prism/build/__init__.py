"""How everything in `data/` was made: corpus, tokenizer, language model, samples, SAEs, cards."""
