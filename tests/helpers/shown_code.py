"""Code that a Markdown page shows."""

from __future__ import annotations

import re
import shlex

import pytest

from xtoken_pl.cli import main


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def shown_commands(text: str) -> list[list[str]]:
    """The arguments behind every ``python -m xtoken_pl``."""
    joined = "".join(code_blocks(text, "sh")).replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in joined.splitlines() if "python -m xtoken_pl" in line]
    return [line[line.index("xtoken_pl") + 1 :] for line in words]


def printed_config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line makes of arguments that end with ``--print_config``."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out
