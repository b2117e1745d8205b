"""How the built-in tiny model was pretrained, and perplexity."""
