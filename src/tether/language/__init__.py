"""Language: aligning causal language models with people, in PyTorch."""

import os

# Before the Hugging Face hub is imported anywhere: nobody is told what a user does here.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
