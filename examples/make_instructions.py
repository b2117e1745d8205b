"""Writes instructions about films: 192 with answers to learn from, 24 others to test with.

    python examples/make_instructions.py

Every instruction asks to praise or to criticize one part of a film, in one of five wordings. Both
have to be read from the instruction: half of the answers are praise, and each names its part. Each
fifth pair of a part and a wording is only in the test, ``new-instructions.jsonl``.
"""

import itertools
import json
import random
from pathlib import Path

PARTS = (
    "acting", "plot", "music", "ending", "direction", "dialogue", "photography", "humor",
    "story", "script", "cast", "pace",
)  # fmt: skip
INSTRUCTIONS = {
    "praise": (
        "Praise the {part}.",
        "Say something good about the {part}.",
        "Write one sentence for someone who loved the {part}.",
        "What did you like about the {part}?",
        "Why was the {part} so good?",
    ),
    "criticize": (
        "Criticize the {part}.",
        "Say something bad about the {part}.",
        "Write one sentence for someone who hated the {part}.",
        "What did you dislike about the {part}?",
        "Why was the {part} so bad?",
    ),
}
ANSWERS = {
    "praise": (
        "The {part} was wonderful, and it made the whole film worth watching.",
        "I loved the {part}: it was fresh, moving and beautifully done.",
        "The {part} was excellent from the first scene to the last.",
        "The {part} was superb, one of the best I have ever seen.",
        "Everything about the {part} was brilliant, and I enjoyed every minute.",
    ),
    "criticize": (
        "The {part} was terrible, and it ruined the whole film.",
        "I hated the {part}: it was dull, lazy and badly done.",
        "The {part} was awful from the first scene to the last.",
        "The {part} was poor, one of the worst I have ever seen.",
        "Everything about the {part} was boring, and I wasted my time.",
    ),
}


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Each instruction twice, with two different answers, shuffled; and those of the test."""
    rng = random.Random(0)
    learned, tested = [], []
    for stance, (p, part) in itertools.product(INSTRUCTIONS, enumerate(PARTS)):
        for w, instruction in enumerate(INSTRUCTIONS[stance]):
            prompt = instruction.format(part=part)
            if (p + w) % 5 == 0:
                tested.append({"prompt": prompt, "part": part, "stance": stance})
                continue
            for answer in rng.sample(ANSWERS[stance], 2):
                learned.append({"prompt": prompt, "completion": answer.format(part=part)})
    rng.shuffle(learned)
    return learned, tested


if __name__ == "__main__":
    for name, found in zip(("instructions", "new-instructions"), rows(), strict=True):
        path = Path(__file__).with_name(f"{name}.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
