"""Data files that come inside Python packages."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from tether.errors import UserError


def packaged_file(package: str, name: str, install: str) -> Path:
    """A file of an installed package, which is not imported.

    Args:
        package: its name on the package index.
        name: of the file, from the folder in which packages lie.
        install: the command that installs the version with this file.

    Raises:
        UserError: the package is missing, or another one than expected; the message says what to
            run.
    """
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the package {package} is not installed; run: {install}") from None
    path = Path(str(found.locate_file(name)))
    if not path.is_file():
        raise UserError(
            f"{package} {found.version} holds no {name}; run: {install} --force-reinstall"
        )
    return path
