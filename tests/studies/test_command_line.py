"""The command line of the studies."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from tether.studies import STUDIES


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_takes_what_its_command_gives_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, function = STUDIES[name].function.split(":")
    study = importlib.import_module(module)
    given: list[inspect.BoundArguments] = []

    def carry_out(
        name: str, summary: str, config: Any, run: Any, *rest: Any, **options: Any
    ) -> None:
        parallel = {"workers": 2, "cluster": None} if options.get("workers") else {}
        given.append(inspect.signature(run).bind(config(), Path("out"), **parallel))

    monkeypatch.setattr(study, "carry_out", carry_out)
    getattr(study, function)([])
    assert given
