"""Film reviews: the built-in texts, prompts and sentiment scorers."""
