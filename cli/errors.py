"""Errors that a user can mend: one line on stderr and exit status 2, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import typer


@contextmanager
def user_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {_said(error)}", err=True)
        raise typer.Exit(2) from error


def _said(error: ValueError | OSError) -> str:
    """The error's text; that of an OSError begins with the file."""
    if isinstance(error, OSError) and error.strerror:
        return ": ".join(filter(None, (str(error.filename or ""), error.strerror)))
    return str(error)


def needs_package(command: str, package: str) -> None:
    """Raise ValueError if a command's package is not installed."""
    if find_spec(package) is None:
        raise ValueError(f"{command} needs the package {package}, got none")


def check_text(option: str, path: Path | None) -> None:
    """Raise ValueError if an option's file is no text in UTF-8."""
    if path is None:
        return
    if not path.is_file():
        raise ValueError(f"{option} needs a text file, got {path}")
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        need = f"{option} needs a text in UTF-8"
        raise ValueError(f"{need}, got byte {error.start} of {path}: {error.reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file; an OSError names it, also where the disk is full."""
    try:
        path.write_text(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
