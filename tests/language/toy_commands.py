"""Data for the commands, and what a command comes to."""

import json
from typing import Any

QUESTIONS = [
    {"prompt": f"Is the answer {i}?", "completion": " yes" * (i % 3 + 1)} for i in range(24)
]
PAIRS = [{"prompt": f"Is {i}?", "chosen": " yes", "rejected": " no no"} for i in range(16)]
FAST = ["--quiet", "--batch-size", "4", "--learning-rate", "1e-3"]


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found
