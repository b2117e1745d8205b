"""One job of the language benchmark, done by tether.

    python benchmarks/language_tether.py JOB.json

Prints one JSON object on its last line: when each step ended, what it read, what it lost.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("tether-rl", "torch", "transformers", "tokenizers", "numpy")


def moment(device: str) -> float:
    """Now, when the device has done all it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def optimization(settings: dict[str, Any]) -> dict[str, Any]:
    beta1, beta2 = settings["betas"]
    return {
        "batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "schedule": settings["schedule"],
        "warmup": 0.0,
        "weight_decay": settings["weight_decay"],
        "adam_beta1": beta1,
        "adam_beta2": beta2,
        "adam_epsilon": settings["adam_epsilon"],
        "max_gradient_norm": settings["max_gradient_norm"],
    }


def in_order(data: list[Any], batch_size: int, seed: int) -> list[Any]:
    """The data laid out so that tether's shuffled order meets them as they were given."""
    from tether.language.learners.order import Order

    order = Order([1] * len(data), batch_size, seed=seed)
    arranged: list[Any] = [None] * len(data)
    given = iter(data)
    for _ in range(0, len(data), batch_size):
        for place in order.next():
            arranged[place] = next(given)
    return arranged


def dpo(job: dict[str, Any], model: Any) -> dict[str, Any]:
    from tether.language.data.tokens import Pair
    from tether.language.methods.dpo.learner import DPOConfig, DPOLearner

    settings, data = job["settings"], job["data"]
    pairs = [Pair(tuple(d["prompt"]), tuple(d["chosen"]), tuple(d["rejected"])) for d in data]
    config = DPOConfig(**optimization(settings), beta=settings["beta"], **job["options"])
    pairs = in_order(pairs, settings["batch_size"], job["seed"])
    learner = DPOLearner(
        config, model, pairs, seed=job["seed"], total_steps=len(pairs), held_out=[]
    )
    began = moment(job["device"])
    while learner.prepare():
        pass
    prepared = moment(job["device"]) - began
    return train(learner, job) | {"preparation_seconds": prepared}


def sft(job: dict[str, Any], model: Any) -> dict[str, Any]:
    from tether.language.data.tokens import Example
    from tether.language.learners.order import Order
    from tether.language.methods.sft import SFTConfig, SFTLearner

    data = [Example(tuple(d["prompt"]), tuple(d["completion"])) for d in job["data"]]
    config = SFTConfig(**optimization(job["settings"]), **job["options"])
    learner = SFTLearner(config, model, data, seed=job["seed"], total_steps=len(data), held_out=[])
    lengths = [len(d.prompt_ids) + len(d.completion_ids) for d in data]
    bucket = config.length_bucketing and not config.packing
    order = Order(lengths, config.batch_size, seed=job["seed"], bucket=bucket)
    result = train(learner, job)
    # Tokens in place of examples, in the order in which the learner met them.
    return result | {"units": [sum(lengths[i] for i in order.next()) for _ in result["units"]]}


def rlhf(job: dict[str, Any], model: Any) -> dict[str, Any]:
    from tether.language.data.tokens import Prompt
    from tether.language.methods.rlhf.learner import RLHFConfig, RLHFLearner
    from tether.language.models.language_model import load_model
    from tether.language.models.reward_model import RewardModel

    settings = job["settings"]
    config = RLHFConfig(
        **optimization(settings),
        beta=settings["beta"],
        max_new_tokens=settings["completion"],
        temperature=settings["temperature"],
        ppo_epochs=settings["epochs"],
        minibatch_size=settings["minibatch_size"],
        missing_eos_score=None,
        **job["options"],
    )
    judge = load_model(job["model"], dtype=job["dtype"], device=job["device"])
    learner = RLHFLearner(
        config,
        model,
        [Prompt(tuple(d["prompt"])) for d in job["data"]],
        seed=job["seed"],
        total_steps=len(job["data"]),
        scorer=RewardModel(judge, seed=1),
    )
    return train(learner, job)


def generate(job: dict[str, Any], model: Any) -> dict[str, Any]:
    from tether.language.models.generation import generate as sample

    settings, size = job["settings"], job["settings"]["batch_size"]
    marks, units = [moment(job["device"])], []
    for start in range(0, len(job["data"]), size):
        completions = sample(
            model,
            [record["prompt"] for record in job["data"][start : start + size]],
            max_new_tokens=settings["completion"],
            temperature=settings["temperature"],
            stop_ids=(),
            seeds=start,
            batch_size=size,
        )
        marks.append(moment(job["device"]))
        units.append(sum(len(item.completion_ids) for item in completions))
    return {"marks": marks, "units": units}


def train(learner: Any, job: dict[str, Any]) -> dict[str, Any]:
    marks, losses, units, lengths = [moment(job["device"])], [], [], []
    for _ in range(job["settings"]["steps"]):
        before = learner.steps
        metrics = learner.iterate()
        marks.append(moment(job["device"]))
        units.append(learner.steps - before)
        losses.append(metrics.get("loss"))
        lengths.append(metrics["tokens/length"])
    return {"marks": marks, "units": units, "losses": losses, "lengths": lengths}


def peak(job: dict[str, Any]) -> dict[str, Any]:
    """The fastest multiplication of square matrices seen, in floating-point operations a second."""
    import torch

    size = 8192 if job["device"].startswith("cuda") else 2048
    dtype = getattr(torch, job["dtype"])
    a, b = (torch.randn(size, size, dtype=dtype, device=job["device"]) for _ in range(2))
    best = 0.0
    for _ in range(job["settings"]["steps"]):
        began = moment(job["device"])
        a @ b
        best = max(best, 2.0 * size**3 / (moment(job["device"]) - began))
    on_gpu = job["device"].startswith("cuda")
    name = torch.cuda.get_device_name(job["device"]) if on_gpu else ""
    return {"flops_per_second": best, "device_name": name}


JOBS: dict[str, Callable[[dict[str, Any], Any], dict[str, Any]]] = {
    "dpo": dpo,
    "sft": sft,
    "rlhf": rlhf,
    "rlhf_chat": rlhf,
    "generate": generate,
}


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    # First, because it decides how memory is had from the system.
    import tether.language  # noqa: F401  # isort: skip

    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    if job["method"] == "peak":
        print(json.dumps(peak(job)))
        return
    from tether.language.models.language_model import load_model

    model = load_model(job["model"], dtype=job["dtype"], device=job["device"])
    result = JOBS[job["method"]](job, model)
    if job["device"].startswith("cuda"):
        result["device_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        result["device_name"] = torch.cuda.get_device_name()
    result |= {"versions": versions(), "threads": torch.get_num_threads()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
