"""The `tether` command: find the subcommand, run it, turn what happens into an exit code.

Nothing heavy is imported before a subcommand is chosen, so `tether --help` answers at once.

Exit codes: 0 done; 2 the user's mistake, told in one line; 130 interrupted, checkpoint saved;
1 anything else, with its traceback.
"""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

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
    "resume": Command("RUN", "go on with a run, bit for bit where it stopped", "tether.cli:resume"),
    "evaluate": Command(
        "RUN", "run whole episodes with a run's policy", "tether.control.commands:evaluate"
    ),
    "sft": Command(
        "--model M --data D", "tune a language model on answers", "tether.language.commands:sft"
    ),
    "reward": Command(
        "--model M --data D",
        "learn a reward model from comparisons",
        "tether.language.commands:reward",
    ),
    "rlhf": Command(
        "--model M --reward R", "PPO on a reward model's scores", "tether.language.commands:rlhf"
    ),
    "dpo": Command(
        "--model M --data D", "learn from comparisons directly", "tether.language.commands:dpo"
    ),
    "best-of-n": Command(
        "--model M --n N",
        "sample n answers, keep the one that scores best",
        "tether.language.choosing:best_of_n",
    ),
    "generate": Command(
        "MODEL --prompt P", "let a model or a run speak", "tether.language.conversing:generate"
    ),
    "chat": Command("MODEL", "talk with a model or a run", "tether.language.conversing:chat"),
    "export": Command(
        "RUN --to F --out DIR", "write a run's model for other programs", "tether.exporting:command"
    ),
    "study": Command("NAME", "reproduce a result of the lecture", "tether.studies.commands:study"),
    "plot": Command("RUN...", "draw learning curves", "tether.learning.commands:plot"),
    "report": Command(
        "RUN...",
        "one page on runs: settings, curves, samples",
        "tether.learning.commands:report",
    ),
    "methods": Command("", "list the methods", "tether.control.commands:methods"),
    "envs": Command("", "list the environments", "tether.control.commands:envs"),
    "demo": Command("", "see both halves at work, from nothing", "tether.studies.demo:demo"),
}

# Those whose runs have checkpoints.
_LEARNING = frozenset({"train", "resume", "sft", "reward", "rlhf", "dpo"})

# What each extra brings; another module that is missing is the user's own, or a defect.
_EXTRAS = {
    "control": frozenset({"av", "gymnasium", "jax", "jaxlib", "mujoco", "optax"}),
    "export": frozenset({"onnx", "onnxruntime"}),
    "language": frozenset(
        {
            "datasets",
            "gguf",
            "jinja2",
            "peft",
            "pyarrow",
            "sklearn",
            "tokenizers",
            "torch",
            "transformers",
        }
    ),
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
    # As `python -m tether` has it, so that --env module:Id finds a module of the user's.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        _find(arguments[0])(arguments[1:])
    except UserError as error:
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
        going_on = "; `tether resume` goes on from the last checkpoint"
        print(f"tether: stopped at once{going_on * (arguments[0] in _LEARNING)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    return 0


def program() -> NoReturn:
    """The command as a process of its own, which ends with what :func:`main` returns."""
    code = main()
    together = sys.modules.get("tether.language.processes")
    if together is not None:
        together.end(code)
    sys.exit(code)


def resume(arguments: Sequence[str]) -> None:
    """`tether resume RUN`: hands over to the half of the house that the run belongs to."""
    half = "control"
    for word in arguments:
        try:
            record = json.loads((Path(word) / "run.json").read_bytes())
            spec, method = record["spec"], record["method"]
            if spec.get("room") == "language":
                half = "language"
            elif "env" not in spec:
                kept = " (python -m tether.language.pretraining)" * (method == "pretraining")
                raise UserError(
                    f"run {word} is one of {method}, which goes on where it was started{kept}; "
                    "`tether resume` knows those of `tether train`, sft, reward, rlhf and dpo"
                )
            break
        except UserError:
            raise
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            # Not a run's folder, or a damaged one: the command itself says so best.
            continue
    importlib.import_module(f"tether.{half}.commands").resume(arguments)


def _find(name: str):  # type: ignore[no-untyped-def]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {mend}")
    module, function = COMMANDS[name].function.split(":")
    return getattr(importlib.import_module(module), function)


def _help() -> str:
    lines = [
        "usage: tether COMMAND ...",
        "",
        "Learning policies, from the policy gradient theorem to aligned language models.",
        "",
        "commands:",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {f'{name} {command.usage}':26}{command.summary}")
    lines += [
        "",
        "options:",
        f"  {'-h, --help':26}show this, or with a command what it takes",
        f"  {'--version':26}show the version",
        "",
        "start here:  tether train ppo --env HalfCheetah-v5 --total-steps 300000",
    ]
    return "\n".join(lines)
