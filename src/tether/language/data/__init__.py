"""Data: sources, formats, chat templates, tokens, batches."""
