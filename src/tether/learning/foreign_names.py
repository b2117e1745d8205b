"""What other libraries call the settings that tether has under another name.

Each word of theirs leads to tether's names, of which the first that the method at hand has is the
answer, with a note on what is counted differently. An empty name is what to say where no method has
such a setting.
"""

from __future__ import annotations

from collections.abc import Collection

ALL_ENVIRONMENTS = "which counts the steps of all environments together"
A_SIZE = "the size of a minibatch, not their number"
OWN_CRITIC = "the critic has an optimizer of its own, so its loss has no weight"
ALWAYS_NORMALIZED = "advantages are always normalized over the batch"

# Arguments of the functions that train, which no method's settings list.
_ARGUMENTS = frozenset(
    {"total_steps", "epochs", "seed", "env", "out", "sinks", "progress", "model", "data"}
    | {"checkpoint_every", "env_kwargs", "network", "threads", "init_from"}
)

_LEARNING_RATE = {"learning_rate": "", "actor_learning_rate": ""}
_MINIBATCH = {"minibatch_size": "", "critic_minibatch_size": "the critic's only"}
_MINIBATCHES = {"minibatch_size": A_SIZE, "critic_minibatch_size": A_SIZE}
_EPOCHS = {"epochs": "", "ppo_epochs": "", "critic_epochs": "the critic's only"}
_ROLLOUT = {"steps_per_iteration": ALL_ENVIRONMENTS}
_CLIP = {"epsilon": ""}
_CLIP_VALUE = {"value_epsilon": ""}
_LAMBDA = {"lam": ""}
_KL_PENALTY = {"beta": ""}
_ENTROPY = {"entropy_coefficient": ""}
_VALUE_WEIGHT = {"value_coefficient": "", "": OWN_CRITIC}
_ADVANTAGE = {"whiten_advantage": "", "normalize_weight": "", "": ALWAYS_NORMALIZED}
_COMPLETION = {"max_new_tokens": ""}
_GROUP = {"samples_per_prompt": ""}
_MODEL = {"model": ""}
_DATA = {"data": ""}
_LORA = {"lora": "the rank"}

FOREIGN_NAMES: dict[str, dict[str, str]] = {
    # Stable-Baselines3 and CleanRL.
    "lr": _LEARNING_RATE,
    "n_steps": _ROLLOUT,
    "num_steps": _ROLLOUT,
    "n_envs": {"num_envs": ""},
    "batch_size": _MINIBATCH,
    "num_minibatches": _MINIBATCHES,
    "n_epochs": _EPOCHS,
    "update_epochs": _EPOCHS,
    "gae_lambda": _LAMBDA,
    "lambda": _LAMBDA,
    "clip": _CLIP,
    "clip_range": _CLIP,
    "clip_coef": _CLIP,
    "clip_ratio": _CLIP,
    "clip_range_vf": _CLIP_VALUE,
    "clip_vloss": {"value_epsilon": "a number, or none"},
    "ent_coef": _ENTROPY,
    "vf_coef": _VALUE_WEIGHT,
    "max_grad_norm": {"max_grad_norm": "", "max_gradient_norm": ""},
    "target_kl": {"target_kl": "", "kl_target": "", "max_kl": ""},
    "anneal_lr": {"anneal": ""},
    "norm_adv": _ADVANTAGE,
    "normalize_advantage": _ADVANTAGE,
    "norm_obs": {"normalize_observation": ""},
    "norm_reward": {"normalize_reward": ""},
    "log_std_init": {"initial_log_std": ""},
    "net_arch": {"hidden": ""},
    "activation_fn": {"activation": ""},
    "policy_kwargs": {"hidden": "with activation, or network= for one's own"},
    "rms_prop_eps": {"optimizer_epsilon": ""},
    "use_rms_prop": {"optimizer": ""},
    "cg_max_steps": {"conjugate_gradient_iterations": ""},
    "cg_damping": {"damping": ""},
    "line_search_max_iter": {"backtracks": ""},
    "line_search_shrinking_factor": {"shrink": ""},
    "n_critic_updates": {"critic_epochs": "passes over the batch, not steps"},
    "total_timesteps": {"total_steps": ""},
    "timesteps": {"total_steps": ""},
    "env_id": {"env": ""},
    "tensorboard_log": {"sinks": ""},
    "verbose": {"progress": ""},
    # TRL and transformers.
    "per_device_train_batch_size": {"batch_size": "rows in a gradient step, however they are read"},
    "gradient_accumulation_steps": {"micro_batch_size": "rows read at a time"},
    "num_train_epochs": {"epochs": ""},
    "max_steps": {"total_steps": "which counts examples or episodes, not gradient steps"},
    "num_ppo_epochs": {"ppo_epochs": ""},
    "num_mini_batches": _MINIBATCHES,
    "cliprange": _CLIP,
    "cliprange_value": _CLIP_VALUE,
    "kl_coef": _KL_PENALTY,
    "init_kl_coef": _KL_PENALTY,
    "num_generations": _GROUP,
    "rloo_k": _GROUP,
    "max_completion_length": _COMPLETION,
    "response_length": _COMPLETION,
    "loss_type": {"loss": ""},
    "lr_scheduler_type": {"schedule": ""},
    "warmup_ratio": {"warmup": ""},
    "warmup_steps": {"warmup": "a share of the run, not a number of steps"},
    "whiten_rewards": {"whiten_reward": ""},
    "missing_eos_penalty": {"missing_eos_score": "the score itself, not what is taken off"},
    "model_name_or_path": _MODEL,
    "train_dataset": _DATA,
    "dataset_name": _DATA,
    "reward_funcs": {"reward": ""},
    "reward_model_path": {"reward": ""},
    "lora_r": _LORA,
    "use_peft": _LORA,
    "output_dir": {"out": ""},
    "report_to": {"sinks": ""},
    "save_steps": {"checkpoint_every": ""},
    "eval_steps": {"evaluate_every": ""},
}


def in_tethers_words(word: str, known: Collection[str], *, option: bool = False) -> str | None:
    """What tether calls another library's setting, as the end of an error message.

    Args:
        word: what was given, such as ``"clip_range"`` or ``"--clip-range"``.
        known: the settings that there are, in tether's words.
        option: whether to write tether's name as a command-line option.

    Returns:
        For instance ``"tether calls it epsilon"``; None for a word of no library that is known, or
        one whose setting the method does not have.
    """
    names = FOREIGN_NAMES.get(word.strip("-").replace("-", "_").lower(), {})
    found = [name for name in names if name in known]
    # An argument is not listed among the settings, but an option is listed among the options.
    found = found or [name for name in names if name in _ARGUMENTS and not option]
    if found:
        ours = f"--{found[0].replace('_', '-')}" if option else found[0]
        note = f" ({names[found[0]]})" if names[found[0]] else ""
        return f"tether calls it {ours}{note}"
    return names.get("")
