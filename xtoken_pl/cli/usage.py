"""Arguments that the parser refuses: what it says, cut down to the part that matters."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import did_you_mean


class UsageError(UserError):
    """Arguments or a configuration that cannot be used."""


class _RefusedError(Exception):
    """What a parser refused, on its way to where the arguments are known."""

    def __init__(self, parser: Any, message: str) -> None:
        super().__init__(message)
        self.parser, self.message = parser, message


def explaining(parser_class: type[Any]) -> type[Any]:
    """A parser that raises what :func:`explained` makes an error of, instead of printing it and ending the process."""

    class Explaining(parser_class):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.exit_on_error:  # of a parser inside, whose errors are collected
                super().error(message, ex)
            raise _RefusedError(self, message) from ex

    return Explaining


@contextmanager
def explained(arguments: list[str]) -> Iterator[None]:
    """Raises what a parser inside refuses as a :class:`UsageError`.

    Args:
        arguments: As the user gave them, the verb first.
    """
    try:
        yield
    except _RefusedError as error:
        from xtoken_pl.cli.explain import explain  # only where it is needed

        raise UsageError(explain(error.parser, error.message, arguments)) from error


def choose_verb(arguments: list[str], verbs: Collection[str]) -> str:
    """The verb of a command line; an option in its place is left to the parser.

    Raises:
        UsageError: If there is none, or it is none of ``verbs``.
    """
    known = ", ".join(verbs)
    if not arguments:
        raise UsageError(
            f"a verb must come first, got nothing; choose one of {known} (`--help` behind it shows its options)"
        )
    verb = arguments[0]
    if verb not in verbs and not verb.startswith("-"):
        raise UsageError(f"the first word must be one of {known}, got {verb!r}{did_you_mean(verb, verbs)}")
    return verb
