"""Settings in the words of other libraries, and the machine that is asked in its own."""

import os
import sys
import types
from typing import Any

import pytest

import tether
from tether.cli import main
from tether.control.methods import METHODS
from tether.errors import UserError
from tether.language.methods import METHODS as LANGUAGE_METHODS
from tether.language.models.from_run import Setup
from tether.learning.foreign_names import _ARGUMENTS, FOREIGN_NAMES, in_tethers_words
from tether.learning.machine import peak_memory_mb, usable_cores
from tether.learning.methods import find_method


def settings() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in METHODS:
        found[name] = set(find_method(METHODS, name).config_class.model_fields)
    for name in LANGUAGE_METHODS:
        fields = find_method(LANGUAGE_METHODS, name).config_class.model_fields
        found[f"language {name}"] = {*fields, *Setup.model_fields}
    return found


def test_every_answer_of_the_table_is_a_setting_that_there_is() -> None:
    ours = {name for names in FOREIGN_NAMES.values() for name in names if name}
    assert ours <= set().union(*settings().values()) | _ARGUMENTS


@pytest.mark.parametrize(
    ("method", "word", "answer"),
    [
        ("ppo", "n_steps", "steps_per_iteration (which counts the steps of all environments"),
        ("ppo", "clip_range", "tether calls it epsilon"),
        ("ppo", "batch_size", "tether calls it minibatch_size"),
        ("ppo", "num_minibatches", "minibatch_size (the size of a minibatch, not their number)"),
        ("trpo", "target_kl", "tether calls it max_kl"),
        ("ppo-kl", "target_kl", "tether calls it kl_target"),
        ("actor-critic", "lr", "tether calls it actor_learning_rate"),
        ("ppo", "vf_coef", "the critic has an optimizer of its own"),
        ("ppo", "total_timesteps", "tether calls it total_steps"),
        ("language rlhf", "kl_coef", "tether calls it beta"),
        ("language rlhf", "vf_coef", "tether calls it value_coefficient"),
        ("language rlhf", "num_generations", "tether calls it samples_per_prompt"),
        ("language sft", "per_device_train_batch_size", "tether calls it batch_size (rows"),
        ("language sft", "num_train_epochs", "tether calls it epochs"),
        ("language sft", "max_grad_norm", "tether calls it max_gradient_norm"),
    ],
)
def test_the_answer_is_the_methods_own_word(method: str, word: str, answer: str) -> None:
    assert answer in str(in_tethers_words(word, settings()[method]))


def test_words_of_no_library_get_the_usual_answer() -> None:
    with pytest.raises(UserError, match="unknown key 'epsylon'; did you mean 'epsilon'"):
        tether.train("ppo", "CartPole-v1", epsylon=1)
    with pytest.raises(UserError, match="unknown key 'ent_coef'; tether calls it entropy_coeff"):
        tether.train("ppo", "CartPole-v1", ent_coef=0.1)
    assert in_tethers_words("kl_coef", settings()["ppo"]) is None


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("train ppo --env CartPole-v1 --lr 1", "unknown option --lr; tether calls it --learning-r"),
        ("train ppo --env CartPole-v1 --n-steps=5", "--n-steps; tether calls it --steps-per-iter"),
        ("train ppo --env CartPole-v1 --lambda 1", "--lambda; tether calls it --lam"),
        ("train ppo --env CartPole-v1 --clip 0.1", "--clip; tether calls it --epsilon"),
        ("train ppo --env CartPole-v1 --total-timesteps 9", "tether calls it --total-steps"),
        ("sft --num-train-epochs 3", "tether calls it --epochs"),
    ],
)
def test_the_command_line_answers_with_its_own_options(
    arguments: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    told = capsys.readouterr().err
    assert answer in told
    assert len(told.strip().splitlines()) == 1


def test_a_machine_without_affinity_or_resource_is_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = peak_memory_mb()
    assert before > 10
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cores() == 3
    usage: Any = types.SimpleNamespace(ru_maxrss=5 * 2**20)
    fake: Any = types.ModuleType("resource")
    fake.RUSAGE_SELF, fake.getrusage = 0, lambda who: usage
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_mb() == 5
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory_mb() == 5 * 1024
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mb() == 0
