"""One job of the language benchmark, done by TRL; run with the peers' own Python.

    python benchmarks/peer_trl.py JOB.json

Prints one JSON object on its last line, of the same kind as language_tether.py. TRL gets token ids
too: its own tokenization, which takes text only, is left out. What is not said here, or in the
job's options, is TRL's default; only its mixed precision, on by default, follows the job.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Nothing here needs the network, and asking for it would be timed.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

PACKAGES = ("trl", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")


def moment(device: str) -> float:
    """Now, when the device has done all it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """What the Hugging Face trainers call the job's settings."""
    settings = job["settings"]
    beta1, beta2 = settings["betas"]
    return {
        "output_dir": "run",
        "seed": job["seed"],
        "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["schedule"],
        "weight_decay": settings["weight_decay"],
        "adam_beta1": beta1,
        "adam_beta2": beta2,
        "adam_epsilon": settings["adam_epsilon"],
        "max_grad_norm": settings["max_gradient_norm"],
        "bf16": job["dtype"] == "bfloat16",
        "use_cpu": job["device"] == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **job["options"],
    }


def clock(device: str) -> Any:
    """A callback that notes when training began and when each step ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.marks.append(moment(device))

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.marks.append(moment(device))

    return Clock()


def tokenizer_of(job: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(job["model"], padding_side="left")


def dpo(job: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    preparation = [0.0]
    losses: list[Any] = []

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            began = moment(job["device"])
            dataset = super()._precompute_ref_logps(*args, **kwargs)
            preparation[0] += moment(job["device"]) - began
            return dataset

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.detach())
            return loss

    watch = clock(job["device"])
    settings = job["settings"]
    trainer = Trainer(
        model=job["model"],
        args=DPOConfig(
            **arguments(job),
            beta=settings["beta"],
            max_steps=settings["steps"],
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(
            [{f"{name}_ids": ids for name, ids in record.items()} for record in job["data"]]
        ),
        processing_class=tokenizer_of(job),
        callbacks=[watch],
    )
    trainer.train()
    return {
        "marks": watch.marks,
        "units": [settings["batch_size"]] * settings["steps"],
        "losses": [float(loss) for loss in losses],
        "preparation_seconds": preparation[0],
    }


def sft(job: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    units: list[int] = []
    losses: list[Any] = []
    settings, options = job["settings"], dict(arguments(job))
    longest = max(len(d["prompt"]) + len(d["completion"]) for d in job["data"])
    if options.get("packing"):
        # As many rows as hold the tokens of a batch of examples.
        tokens = sum(len(d["prompt"]) + len(d["completion"]) for d in job["data"])
        options["per_device_train_batch_size"] = max(1, round(tokens / settings["steps"] / longest))

    class Trainer(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")
            units.append(int(inputs["input_ids"].numel() if mask is None else mask.sum()))
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).detach())
            return loss

    watch = clock(job["device"])
    trainer = Trainer(
        model=job["model"],
        args=SFTConfig(
            **options, max_length=longest, num_train_epochs=1, completion_only_loss=True
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "input_ids": d["prompt"] + d["completion"],
                    "completion_mask": [0] * len(d["prompt"]) + [1] * len(d["completion"]),
                }
                for d in job["data"]
            ]
        ),
        processing_class=tokenizer_of(job),
        callbacks=[watch],
    )
    trainer.train()
    return {"marks": watch.marks, "units": units, "losses": [float(loss) for loss in losses]}


def rlhf(job: dict[str, Any]) -> dict[str, Any]:
    """PPO as TRL had it: policy, critic and reward model are models of their own."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    lengths: list[float] = []
    truncate = ppo_trainer.truncate_response

    def measured(stop: int, pad: int, responses: Any) -> Any:
        going = (responses == stop).cumsum(1) == 0
        lengths.append(float((going.sum(1) + 1).clamp(max=responses.shape[1]).float().mean()))
        return truncate(stop, pad, responses)

    ppo_trainer.truncate_response = measured
    settings = job["settings"]
    tokenizer = tokenizer_of(job)
    # It tells padding by id, so padding must not be the token that ends a completion.
    tokenizer.pad_token = tokenizer.unk_token or tokenizer.bos_token

    def load(kind: Any, **more: Any) -> Any:
        torch.manual_seed(1)
        model = kind.from_pretrained(job["model"], dtype=torch.float32, **more)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    watch = clock(job["device"])
    options = arguments(job)
    del options["max_grad_norm"]
    trainer = PPOTrainer(
        args=PPOConfig(
            **options,
            total_episodes=len(job["data"]),
            num_mini_batches=settings["batch_size"] // settings["minibatch_size"],
            num_ppo_epochs=settings["epochs"],
            response_length=settings["completion"],
            temperature=settings["temperature"],
            kl_coef=settings["beta"],
            stop_token="eos",
            num_sample_generations=0,
        ),
        processing_class=tokenizer,
        model=load(AutoModelForCausalLM),
        ref_model=load(AutoModelForCausalLM),
        reward_model=load(AutoModelForSequenceClassification, num_labels=1),
        value_model=load(AutoModelForSequenceClassification, num_labels=1),
        train_dataset=Dataset.from_list([{"input_ids": d["prompt"]} for d in job["data"]]),
        eval_dataset=Dataset.from_list([{"input_ids": job["data"][0]["prompt"]}]),
        callbacks=[watch],
    )
    trainer.train()
    units = [settings["batch_size"]] * settings["steps"]
    return {"marks": watch.marks, "units": units, "lengths": lengths}


def generate(job: dict[str, Any]) -> dict[str, Any]:
    """Sampling as TRL's trainers do it where there is no vLLM: transformers' own."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    settings, size = job["settings"], job["settings"]["batch_size"]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    model.to(job["device"]).eval()
    model.generation_config.eos_token_id = None
    config = GenerationConfig(
        max_new_tokens=settings["completion"],
        do_sample=True,
        temperature=settings["temperature"],
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer_of(job).pad_token_id,
    )
    marks, units = [moment(job["device"])], []
    for start in range(0, len(job["data"]), size):
        prompts = torch.tensor([d["prompt"] for d in job["data"][start : start + size]])
        prompts = prompts.to(job["device"])
        with torch.no_grad():
            rows = model.generate(
                prompts, attention_mask=torch.ones_like(prompts), generation_config=config
            )
        marks.append(moment(job["device"]))
        units.append(rows[:, prompts.shape[1] :].numel())
    return {"marks": marks, "units": units}


JOBS = {"dpo": dpo, "sft": sft, "rlhf": rlhf, "rlhf_chat": rlhf, "generate": generate}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    result = JOBS[job["method"]](job)
    if job["device"].startswith("cuda"):
        result["device_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        result["device_name"] = torch.cuda.get_device_name()
    result |= {
        "versions": {name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
