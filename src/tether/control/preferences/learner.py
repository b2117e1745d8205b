"""Learn a policy from comparisons of its own segments (Christiano et al. 2017, 1706.03741).

    the untrained policy acts; the first labels are asked for; the reward model is fitted
    for each iteration:
        when it is time: ask for the labels that are due, fit the reward model to all of them
        collect a rollout; its rewards are replaced by the reward model's
        improve the policy by an on-policy method, which never sees the true rewards

`return/...` are the true returns, for reporting alone. People answer while training goes on; it
waits for them only when fewer labels are there than the schedule asks for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tether.control.architectures import PolicyNetwork
from tether.control.envs import VectorEnv
from tether.control.envs.vector import EnvLike
from tether.control.learner import OnPolicyLearner
from tether.control.policy import Policy, PolicySpec
from tether.control.policy_learner import check_finite
from tether.control.preferences.asking import Asker
from tether.control.preferences.comparisons import Compared, Comparisons
from tether.control.preferences.config import PreferConfig, on_policy_method
from tether.control.preferences.history import History
from tether.control.preferences.inputs import RewardInputs
from tether.control.preferences.people import LOOK_EVERY, Keeper, People
from tether.control.preferences.reward_model import RewardModel
from tether.control.preferences.schedule import Schedule
from tether.control.preferences.segments import Cutter, segment_length
from tether.control.preferences.task import learned_task
from tether.control.preferences.teachers import (
    HUMAN,
    ORACLE,
    RecordedTeacher,
    check_comparable,
    recorded_teacher,
    teacher_again,
    teacher_of,
)
from tether.control.rollout import Experience
from tether.control.run_environment import Task
from tether.errors import UserError
from tether.learning.callbacks import BaseCallback, Callback, RunView
from tether.learning.learner import Learner, Metrics, State
from tether.learning.run import Run
from tether.learning.seeding import Stream, generator
from tether.learning.signals import stop_requested
from tether.preferences.items import Segment
from tether.preferences.oracle import OracleTeacher
from tether.preferences.records import Answer


class Prefer:
    """An on-policy method that learns from a learned reward.

    It is driven like any :class:`~tether.control.policy_learner.PolicyLearner`.

    Args:
        config: the settings, with those of the on-policy method.
        env: a vector environment nobody else steps.
        seed: decides everything random.
        total_steps: environment steps the run is meant to take.
        initial: a policy to begin with.
        network: the user's own network for policy and critic.
        teacher: who compares; see :func:`~tether.control.preferences.teachers.teacher_of`.
        env_kwargs: what the environments were made with.

    Raises:
        UserError: anything that the user can correct.
    """

    config: PreferConfig
    config_class: ClassVar[type[PreferConfig]] = PreferConfig
    takes: ClassVar[tuple[str, ...]] = ("teacher", "env_kwargs")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # PPO is this library's best method.
        "default": {},
        # Section 2.2 and appendix A.1, as far as tether's TRPO has it: no entropy bonus.
        "paper": {
            "policy_method": "trpo",
            "gamma": 0.995,
            "lam": 0.97,
            "queries": "disagreement",
            "torque_cost": False,
            "termination_steps": 1_000_000,
            "first_labels": 0.25,
            "label_decay_steps": 2_000_000,
        },
    }

    def __init__(
        self,
        config: PreferConfig,
        env: VectorEnv,
        *,
        seed: int,
        total_steps: int,
        initial: Policy | None = None,
        network: PolicyNetwork | None = None,
        teacher: Any = "oracle",
        env_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.env, self.total_steps = config, env, total_steps
        self._length = segment_length(env, config.segment_steps)
        self._inputs = RewardInputs(env, config.reward_inputs)
        steps = self._length - self._inputs.left_out
        if steps < 1:
            raise UserError(
                "segment_steps is 1; with the reward inputs transition expected at least 2"
            )
        self._horizon = config.policy.steps_per_iteration // env.num_envs
        self._block = min(4096, self._horizon * env.num_envs)
        self.schedule = self._schedule()
        self._teacher = teacher_of(teacher, config, seed, env)
        if config.learn_from != "comparisons" or isinstance(self._teacher, OracleTeacher):
            check_comparable(env, seed)
        components = int(np.prod(env.action_space.shape or (1,)))
        self.inner: OnPolicyLearner = on_policy_method(config.policy_method)(
            config.exploring(components),
            env,
            seed=seed,
            total_steps=total_steps,
            initial=initial,
            network=network,
        )
        self.inner.collector.judge = self._judge
        self.model = RewardModel(
            config.reward_settings, self._inputs.width, generator(seed, Stream.REWARD_WEIGHTS)
        )
        self.data = Comparisons(
            config.items,
            steps,
            self._inputs.width,
            members=config.ensemble,
            seed=seed,
            expected=config.labels,
        )
        self.history = History()
        self.asker = Asker(
            config,
            env.id,
            self._length,
            cutter=Cutter(env, env_kwargs or {}),
            history=self.history,
            inputs=self._inputs,
            model=self.model,
            data=self.data,
            rng=generator(seed, Stream.QUERIES),
        )
        self._fitting = generator(seed, Stream.REWARD_FITTING)
        self._cursor = 0
        self._fits = 0
        self._fitted: Metrics = {}
        self._measured: Metrics = {}
        self._people: People | None = None
        self._keeper: Keeper | None = None

    @classmethod
    def task(cls, config: PreferConfig, env: EnvLike, env_kwargs: Mapping[str, Any]) -> Task:
        """The task without what would give its reward away; see :mod:`.task`."""
        return learned_task(config, env, env_kwargs)

    @classmethod
    def objects(cls, teacher: Any, task: Task, run: Run | None) -> dict[str, Any]:
        """What it takes beside settings: the teacher, as given or as `run` recorded it."""
        if run is not None:
            teacher = teacher_again(run.spec["teacher"], teacher, run.path)
        return {"teacher": ORACLE if teacher is None else teacher, "env_kwargs": task.env_kwargs}

    @classmethod
    def record(cls, objects: Mapping[str, Any]) -> dict[str, Any]:
        """What a run records of them."""
        return {"teacher": recorded_teacher(objects["teacher"])}

    @classmethod
    def environments(cls, config: PreferConfig) -> int:
        """The setting `num_envs` of the on-policy method."""
        return config.policy.num_envs

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.inner.policy

    @property
    def spec(self) -> PolicySpec:
        """The policy's."""
        return self.inner.spec

    @property
    def steps(self) -> int:
        """Environment steps taken so far, those of the untrained policy included."""
        return self.inner.steps

    def callbacks(self) -> Sequence[Callback]:
        """What opens and closes the run's store."""
        return (_OpensStore(self),)

    def iterate(self) -> Metrics:
        """One rollout, and but for the untrained policy one update."""
        if self.steps < self.schedule.begin:
            self.inner.collect()
            return self._metrics(self.inner.episodes())
        if self.config.learn_from == "reward":
            return self._metrics(self.inner.iterate())
        if not self._labels_are_there():
            return self._metrics({})
        if self.model.fits == 0 or self.schedule.fits(self.steps) > self._fits:
            self._fit()
        return self._metrics(self.inner.iterate())

    def state(self) -> State:
        """Everything that decides the future; ``policy`` is the policy's own state."""
        return {
            **self.inner.state(),
            "preferences": {
                "model": self.model.state(),
                "data": self.data.state(),
                "history": self.history.state(),
                **self.asker.state(),
                "fitting_rng": dict(self._fitting.bit_generator.state),
                "cursor": self._people.cursor if self._people is not None else self._cursor,
                "fits": self._fits,
                "fitted": dict(self._fitted),
            },
        }

    def restore(self, state: State) -> None:
        """Undo :meth:`state`."""
        restored: Any = state
        self.inner.restore(restored)
        own = restored["preferences"]
        self.model.restore(own["model"])
        self.data.restore(own["data"])
        self.history.restore(own["history"])
        self.asker.restore(own)
        self._fitting.bit_generator.state = own["fitting_rng"]
        self._cursor = int(own["cursor"])
        self._fits = int(own["fits"])
        self._fitted = dict(own["fitted"])

    def open_store(self, run: RunView) -> None:
        """Opens the run's store where the settings need one."""
        if self._teacher == HUMAN:
            self.asker.cutter.origin = run.path.name
            self._people = People(run.path, self.config.labels)
            self._people.cursor = self._cursor
        elif self.config.store:
            self._keeper = Keeper(run.path, self.config.labels)

    def close_store(self) -> None:
        """Closes the run's store."""
        if self._people is not None:
            self._cursor = self._people.cursor
            self._people.close()
        if self._keeper is not None:
            self._keeper.close()
        self._people = self._keeper = None

    def close(self) -> None:
        """Releases the environments."""
        self.inner.close()

    def _schedule(self) -> Schedule:
        config, count = self.config, self.env.num_envs
        first = max(1, round(config.first_labels * config.labels))
        least = (self._length + 1) * count
        begin = config.random_steps
        if begin is None:
            apart = first * config.items * self._length
            begin = max(least, min(apart, self.total_steps // 10))
        begin = max(begin, least)
        iterations = math.ceil(begin / (self._horizon * count))
        begin = iterations * self._horizon * count
        if begin >= self.total_steps:
            raise UserError(
                f"total_steps is {self.total_steps}, and the untrained policy alone takes {begin} "
                f"for the first segments of {self._length} steps in {count} environments; expected "
                "more steps, or fewer num_envs"
            )
        return Schedule(
            labels=config.labels,
            first=first,
            begin=begin,
            total_steps=self.total_steps,
            decay_steps=config.label_decay_steps or max(1, self.total_steps // 5),
            refits=config.refits,
        )

    def _judge(self, seen: Experience) -> np.ndarray | None:
        """Rewards of a rollout; None while there is no reward model."""
        config, count = self.config, self.env.num_envs
        inputs = self._inputs(seen.observation, seen.action, seen.next_observation)
        flat = inputs.reshape(-1, self._inputs.width)
        self.model.watch(flat)
        untrained = self.steps < self.schedule.begin
        if config.learn_from == "reward":
            return None if untrained else seen.reward
        keep = self.schedule.begin if untrained else config.recent_steps
        keep = max(-(-keep // count), 2 * self._length + self._horizon)
        self.history.add(seen, self.steps, keep)
        if self.model.fits == 0:
            return None
        rewards = self.model.rewards(flat, self._block).reshape(seen.reward.shape)
        self._measured = {"reward/learned_mean": float(rewards.mean())}
        if rewards.std() > 0 and seen.reward.std() > 1e-12:
            correlation = np.corrcoef(rewards.ravel(), seen.reward.ravel())[0, 1]
            self._measured["reward/correlation"] = float(correlation)
        return rewards

    def _labels_are_there(self) -> bool:
        """Whether there are as many labels as are due; asks, and waits for people."""
        due = self.schedule.due(self.steps)
        if self._people is None:
            if self.model.fits == 0 or self.schedule.fits(self.steps) > self._fits:
                self._ask_teacher(due - len(self.data))
            return True
        self._ask_people(self._people, due)
        while len(self.data) < due:
            if stop_requested():
                return False
            self._people.remind(due - len(self.data))
            time.sleep(LOOK_EVERY)
            self._ask_people(self._people, due)
        return True

    def _ask_teacher(self, count: int) -> None:
        if count <= 0:
            return
        if isinstance(self._teacher, RecordedTeacher):
            if not len(self.data):
                self._take(self._teacher.recorded[: self.config.labels])
            return
        queries = self.asker.queries(count, self.steps)
        if isinstance(self._teacher, OracleTeacher):
            self._teacher.reward_per_step = float(self.history.reward.mean())
        answers = self._teacher.answers(queries)
        if self._keeper is not None:
            self._keeper.keep(queries, answers)
        self._take([(one, items) for one, (_, items) in zip(answers, queries, strict=True) if one])
        if not len(self.data):
            raise UserError(
                f"the teacher {self._teacher.name} has answered none of the first {count} queries; "
                "expected some labels to learn from"
            )

    def _ask_people(self, people: People, due: int) -> None:
        """Reads what people have answered, and keeps enough queries waiting for them."""
        new: list[tuple[Answer, Sequence[Segment]]] = []
        for answer in people.news():
            if answer.supersedes is not None:
                new = [(one, items) for one, items in new if one.uuid != answer.supersedes]
                self.data.remove(answer.supersedes)
            if not answer.retracted:
                new.append((answer, people.items_of(answer.query)))
        self._take(new)
        wanted = min(self.config.labels, due + self.config.queue) - len(self.data)
        missing = wanted - people.open() if wanted > 0 else 0
        if missing > 0:
            people.ask(self.asker.queries(missing, self.steps))

    def _take(self, answered: Sequence[tuple[Answer, Sequence[Segment]]]) -> None:
        """Adds answers that say something to the data."""
        compared = []
        for answer, items in answered:
            if not answer.says_something:
                continue
            ranked = list(items)
            if answer.ranking is not None:
                ranked = [items[i] for i in answer.ranking]
            compared.append(
                Compared(
                    key=answer.uuid,
                    segments=[self._inputs.of_segment(i.observation, i.action) for i in ranked],
                    label=1.0 if answer.preference is None else answer.preference,
                    returns=[math.nan if i.reward is None else i.true_return for i in ranked],
                )
            )
        self.data.extend(compared)

    def _fit(self) -> None:
        first = self.model.fits == 0
        steps = self.config.first_fit_steps if first else self.config.refit_steps
        self._fitted = self.model.fit(self.data, steps, self._fitting, self._block)
        self._fits = self.schedule.fits(self.steps)

    def _metrics(self, inner: Metrics) -> Metrics:
        own: Metrics = {
            "labels/count": len(self.data),
            "labels/asked": self.asker.asked,
            "labels/due": self.schedule.due(self.steps),
            **self._fitted,
            **self._measured,
        }
        check_finite(own, self.steps)
        return {**inner, **own}


class _OpensStore(BaseCallback):
    def __init__(self, learner: Prefer) -> None:
        self.learner = learner

    def on_start(self, run: RunView, learner: Learner) -> None:
        self.learner.open_store(run)

    def on_end(self, run: RunView, learner: Learner) -> None:
        self.learner.close_store()
