"""The `tether` command: find the subcommand, run it, turn what happens into an exit code.

Nothing heavy is imported before a subcommand is chosen, so `tether --help` answers at once.

Exit codes: 0 done; 2 the user's mistake, explained in one line; 130 interrupted, checkpoint saved;
1 anything else, with its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from tether.control import configure_jax
from tether.errors import Interrupted, UserError
from tether.version import __version__


class Command(NamedTuple):
    """A subcommand: its arguments as shown, what it does, and the function that does it."""

    usage: str
    summary: str
    function: str


COMMANDS: dict[str, Command] = {
    "train": Command(
        "METHOD --env ID", "train a policy in an environment", "tether.control.commands:train"
    ),
    "resume": Command(
        "RUN", "continue a run, bit for bit from where it stopped", "tether.run_commands:resume"
    ),
    "evaluate": Command(
        "RUN",
        "measure a run's policy: whole episodes, or answers to prompts",
        "tether.run_commands:evaluate",
    ),
    "sft": Command(
        "--model M --data D",
        "fine-tune a language model on demonstrations",
        "tether.language.commands.learn:sft",
    ),
    "reward": Command(
        "--model M --data D",
        "train a reward model on comparisons",
        "tether.language.commands.learn:reward",
    ),
    "rlhf": Command(
        "--model M --reward R",
        "train a language model by PPO on a reward",
        "tether.language.commands.learn:rlhf",
    ),
    "dpo": Command(
        "--model M --data D",
        "train a language model on comparisons (DPO)",
        "tether.language.commands.learn:dpo",
    ),
    "judge": Command(
        "--model M --data D",
        "label pairs of texts by a language model that judges",
        "tether.language.commands.judge:judge",
    ),
    "best-of-n": Command(
        "--model M --n N",
        "sample n answers, keep the one that scores best",
        "tether.language.commands.best_of_n:best_of_n",
    ),
    "label": Command(
        "RUN|STORE",
        "serve the page on which people compare clips or texts",
        "tether.web.commands:label",
    ),
    "generate": Command(
        "MODEL --prompt P",
        "answer a prompt with a model or a run",
        "tether.language.commands.speak:generate",
    ),
    "chat": Command("MODEL", "talk with a model or a run", "tether.language.commands.speak:chat"),
    "prefer": Command(
        "--env ID|--model M",
        "learn from comparisons of clips or of texts",
        "tether.run_commands:prefer",
    ),
    "preferences": Command(
        "STORE",
        "show or export a store of comparisons",
        "tether.preferences.commands:preferences",
    ),
    "export": Command(
        "RUN --to F --out DIR", "write a run's model for other programs", "tether.exporting:command"
    ),
    "study": Command("NAME", "reproduce a result of the lecture", "tether.studies.commands:study"),
    "plot": Command("RUN...", "draw learning curves", "tether.run_commands:plot"),
    "report": Command(
        "RUN...",
        "write a page about runs: settings, curves, samples",
        "tether.run_commands:report",
    ),
    "methods": Command("", "list the methods", "tether.run_commands:methods"),
    "envs": Command("", "list the environments", "tether.control.commands:envs"),
    "demo": Command(
        "", "train a policy and align a language model, from nothing", "tether.studies.demo:demo"
    ),
}

_NAMES_A_MODULE = re.compile(r"^(--[\w-]+=)?(?!judge:)[A-Za-z_][\w.]*:[\w./-]+$")

# Those whose runs have checkpoints.
_LEARNING = frozenset({"train", "prefer", "resume", "sft", "reward", "rlhf", "dpo"})

# What each extra brings; another module that is missing is the user's own, or a defect.
_EXTRAS = {
    "control": frozenset({"av", "gymnasium", "jax", "jaxlib", "mujoco", "optax"}),
    "export": frozenset({"onnx", "onnxruntime"}),
    "language": frozenset(
        {
            "datasets",
            "gguf",
            "httpx2",
            "jinja2",
            "peft",
            "pyarrow",
            "sklearn",
            "tokenizers",
            "torch",
            "transformers",
        }
    ),
    "label": frozenset({"fastapi", "krippendorff", "sqlalchemy", "starlette", "uvicorn"}),
    "postgres": frozenset({"psycopg"}),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(f"tether {__version__}")
        return 0
    # Code in the current folder runs only where the user names it, as in --env module:Id.
    if any(_NAMES_A_MODULE.search(word) for word in arguments) and "" not in sys.path:
        sys.path.insert(0, "")
    try:
        if arguments[0] == "train" and len(arguments) > 1 and _is_method("language", arguments[1]):
            raise UserError(
                f"{arguments[1]} trains a language model and is a separate command; give: tether "
                f"{arguments[1]} --model M --data D"
            )
        _find(arguments[0])(arguments[1:])
    except UserError as error:
        if os.environ.get("TETHER_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"tether: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = next((name for name, packages in _EXTRAS.items() if error.name in packages), None)
        if extra is None:
            raise
        print(
            f"tether: `tether {arguments[0]}` needs {error.name}, which is not installed; "
            f"run: pip install 'tether-rl[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except Interrupted:
        return 130
    except KeyboardInterrupt:
        more = "; a run that has saved a checkpoint can be continued: tether resume RUN"
        print(f"tether: stopped at once{more * (arguments[0] in _LEARNING)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return 0


def program() -> NoReturn:
    """The command as a process of its own, which ends with what :func:`main` returns."""
    # JAX reads its settings when it starts, and a process of tether's own has no other use for it.
    configure_jax()
    code = main()
    together = sys.modules.get("tether.language.runtime.processes")
    if together is not None:
        together.end(code)
    sys.exit(code)


def _find(name: str):  # type: ignore[no-untyped-def]
    if name not in COMMANDS:
        if _is_method("control", name):
            raise UserError(
                f"{name} is a method, not a command; give: tether train {name} --env ID"
            )
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    module, function = COMMANDS[name].function.split(":")
    return getattr(importlib.import_module(module), function)


def _is_method(engine: str, name: str) -> bool:
    from tether.engines import methods_of

    return name in methods_of(engine)


def _help() -> str:
    lines = [
        "usage: tether COMMAND ...",
        "",
        "Learning policies, from the policy gradient theorem to aligned language models.",
        "",
        "commands:",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {f'{name} {command.usage}':28}{command.summary}")
    lines += [
        "",
        "options:",
        f"  {'-h, --help':28}show this; with a command, its options",
        f"  {'--version':28}show the version",
        "",
        "start here:  tether train ppo --env HalfCheetah-v5 --total-steps 300000",
    ]
    return "\n".join(lines)
