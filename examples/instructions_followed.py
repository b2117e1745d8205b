"""How many of 24 new instructions a model follows.

    python examples/instructions_followed.py tiny runs/instructed

An answer follows its instruction if it names the part of the film that was asked for, and if the
gold scorer finds it positive where praise was asked for and negative where criticism was.
"""

import json
import sys
from pathlib import Path

import tether
from tether.language.reviews.prompts import gold_scorer

if __name__ == "__main__":
    path = Path(__file__).with_name("new-instructions.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows]
    for model in sys.argv[1:]:
        answers = tether.generate(model, prompts, temperature=0, max_new_tokens=30)
        positive = gold_scorer()(answers)
        named = [row["part"] in answer for row, answer in zip(rows, answers, strict=True)]
        meant = [
            (p > 0.5) == (row["stance"] == "praise") for row, p in zip(rows, positive, strict=True)
        ]
        both = sum(n and m for n, m in zip(named, meant, strict=True))
        print(f"{model}: part {sum(named)}, stance {sum(meant)}, both {both} of {len(rows)}")
        for prompt, answer in zip(prompts, answers, strict=True):
            print(f"  {prompt} -> {answer.strip()}")
