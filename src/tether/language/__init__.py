"""Language: aligning causal language models with people, in PyTorch."""

import os

# Before the Hugging Face hub is imported anywhere: it must not report what a user does.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
