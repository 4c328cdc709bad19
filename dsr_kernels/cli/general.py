"""What ``dsr`` understands before any command: its version, completion, misspelt commands."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsr_kernels.choices import unknown
from dsr_kernels.errors import require
from dsr_kernels.version import versions

COMPLETION = "--print-completion"
SHELLS = ("bash", "zsh", "tcsh")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --version and --print-completion."""
    add = functools.partial(parser.add_argument, action=_Ends)
    add("--version", nargs=0, text=_version, help="show versions and exit")
    completion = "print what makes this shell complete commands and options, and exit"
    add(COMPLETION, choices=SHELLS, text=_completion, help=completion)


def check_command(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Ends as argparse does for a command that there is not, with the closest one."""
    known = commands_of(parser)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        parser.error(f"unknown command {unknown(arguments[0], known)}")


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


class _Ends(argparse.Action):
    """An option that shows a text, whatever else is asked for. `text` makes it of the value."""

    def __init__(self, text: Callable[[argparse.ArgumentParser, Any], str], **options: Any) -> None:
        super().__init__(**options)
        self.text = text

    def __call__(
        self, parser: argparse.ArgumentParser, _: Any, values: Any, __: str | None = None
    ) -> None:
        print(self.text(parser, values))
        parser.exit()


def _version(parser: argparse.ArgumentParser, _: Any) -> str:
    return f"{parser.prog} {versions()}"


def _completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The shell's script. Raises UsageError where shtab is not installed."""
    shtab = require("shtab", COMPLETION, "completion")
    for command in (parser, *commands_of(parser).values()):
        for action in command._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab reads it
    return shtab.complete(parser, shell=shell)
