"""Language: aligning causal language models with people, in PyTorch."""
