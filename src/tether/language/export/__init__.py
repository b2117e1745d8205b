"""Language models in forms that other programs read: Hugging Face folders, and GGUF."""
