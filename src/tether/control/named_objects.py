"""Python objects that the command line names as ``module:object``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tether.errors import UserError


def named_object(option: str, name: str | None) -> Any:
    """Import what an option such as ``--network my_networks:Residual`` names; None for None.

    Raises:
        UserError: the name has another form, or the module or the object is not there.
    """
    if name is None:
        return None
    module, _, path = name.partition(":")
    if not module or not path:
        raise UserError(f"{option} is {name!r}; expected module:object, such as my_networks:Wide")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise UserError(f"{option} {name}: importing {module} failed: {error}") from error
        raise UserError(
            f"{option} {name} names the module {module}, which is neither installed nor in the "
            f"current folder, {Path.cwd()}; go to the folder that holds {module}.py, or add that "
            "folder to PYTHONPATH"
        ) from error
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{option} {name}: importing {module} raised {said[:200]}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"{option} {name}: the module {module} has no {path}")
        found = getattr(found, part)
    return found
