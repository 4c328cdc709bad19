"""What `dsr --help` says, and each of its commands, as Markdown."""

from __future__ import annotations

import argparse
import os
from unittest.mock import patch


def help_of_all() -> str:
    from dsr_kernels import cli

    with patch.dict(os.environ, {"COLUMNS": "88", "NO_COLOR": "1"}):
        parser = cli._parser()
        parsers = parser, *cli.general.commands_of(parser).values()
        return "\n".join(map(_section, parsers))


def _section(parser: argparse.ArgumentParser) -> str:
    return f"## `{parser.prog}`\n\n```text\n{parser.format_help().rstrip()}\n```\n"
