"""`tether study NAME`: hands over to the study, or lists them."""

from __future__ import annotations

from collections.abc import Sequence

from tether.arguments import say
from tether.errors import Interrupted, UserError
from tether.studies import STUDIES, find_study


def study(arguments: Sequence[str]) -> None:
    """`tether study NAME [options]`.

    Raises:
        UserError: no such study, or whatever the study finds to be the user's mistake.
        Interrupted: Ctrl-C or SIGTERM; a line on stderr has said how to go on.
    """
    if not arguments:
        raise UserError(f"study needs a name; known: {', '.join(STUDIES)}")
    if arguments[0] in ("-h", "--help"):
        print(_help())
        return
    try:
        find_study(arguments[0])(arguments[1:])
    except KeyboardInterrupt:
        # Its runs may have said how to go on with them; a study is more than its runs.
        line = "tether: stopped; the same command goes on where this one stopped"
        say(line)
        raise Interrupted(line) from None


def _help() -> str:
    lines = ["usage: tether study NAME [--out DIR] [options]", "", "studies:"]
    lines += [f"  {name:18}{study.summary}" for name, study in STUDIES.items()]
    lines += [
        "",
        "A study that was stopped continues when its command is given again.",
        "`tether study NAME --help` shows its options.",
    ]
    return "\n".join(lines)
