"""What the commands of all studies share: their options, and what is done with the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from tyro.conf import arg

from tether.arguments import parse, print_json, say
from tether.learning.config import Config
from tether.studies.provenance import protocol_lines

ADDRESS: Final = "local|HOST:PORT"
CLUSTER: Final = (
    "A Ray cluster that runs the trials, one on each core, in place of workers: local, or "
    "the address that `ray start --head` printed. All machines need the folder of the study."
)

KNOWN: Final = (
    "JSON files that this study wrote before, of other methods or seeds; what they hold is not "
    "done again."
)


def carry_out(
    name: str,
    summary: str,
    config: type[Config],
    run: Callable[..., dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    arguments: Sequence[str],
    *,
    out: str = "Folder of the study; an unfinished one is continued.",
    workers: str | None = None,
    known: bool = False,
    left: str = "figure: {out}/{name}.png; table: {out}/{name}.json",
) -> None:
    """`tether study NAME`: runs the study, shows what it found, and says where it lies.

    Args:
        name: of the study; its folder is ``runs/NAME`` by default.
        summary: what the help begins with.
        config: the study's settings, each an option.
        run: (settings, out), and `workers` and `cluster` if there are any, and `known` if it takes
            any, to a JSON-able result.
        show: prints what was found to stderr.
        arguments: the command's.
        out: help of the option.
        workers: help of the option; None: the study has no such option.
        known: whether the study's JSON file holds its trials with their settings, so that another
            study may take them from there.
        left: the line that says where everything lies.

    Raises:
        UserError: a bad option, or whatever `run` finds to be the user's mistake.
    """
    helped: list[tuple[str, Any, Any]] = [
        ("out", Annotated[Path, arg(help=out)], Path("runs") / name)
    ]
    if workers is not None:
        helped.append(("workers", Annotated[int, arg(help=workers)], 2))
        helped.append(("cluster", Annotated[str | None, arg(help=CLUSTER, metavar=ADDRESS)], None))
    if known:
        helped.append(("known", Annotated[tuple[Path, ...], arg(help=KNOWN)], ()))
    printed = "Print one JSON object as the last line of stdout."
    helped.append(("json", Annotated[bool, arg(help=printed)], False))
    settings = field(default_factory=config)
    kind = make_dataclass(
        "Options",
        [*helped, ("settings", Annotated[config, arg(name="settings")], settings)],
        frozen=True,
    )
    kind.__doc__ = summary
    options: Any = parse(kind, arguments, prog=f"tether study {name}")
    where: dict[str, Any] = (
        {} if workers is None else {"workers": options.workers, "cluster": options.cluster}
    )
    if known:
        where["known"] = options.known
    found = run(options.settings, options.out, **where)
    show(found)
    for line in protocol_lines(found["protocol"]) if "protocol" in found else ():
        say(line)
    say(left.format(out=options.out, name=name))
    if options.json:
        print_json(found)
