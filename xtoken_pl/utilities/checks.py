"""Checks of arguments that several classes share."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, get_args

from xtoken_pl.utilities.errors import UserError


def check_choice(name: str, value: Any, choices: Any) -> Any:
    """Returns ``value`` if it is one of the values of the Literal ``choices``.

    Raises:
        UserError: If it is not.
    """
    if value not in get_args(choices):
        raise UserError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
    return value


def check_at_least_one(name: str, value: int | None, hint: str | None = None) -> None:
    """Checks that ``value`` is an integer >= 1, or None if the argument is optional.

    Args:
        name: Name of the argument, for the message.
        value: Value to check.
        hint: Advice at the end of the message.

    Raises:
        UserError: If it is not.
    """
    if value is None:
        return
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < 1:
        rule = ">= 1" if is_integer else "an integer >= 1"
        raise UserError(f"{name} must be {rule}, got {value}{'' if hint is None else f'; {hint}'}")


def check_not_negative(name: str, value: float, hint: str) -> float:
    """Returns ``value`` if it is a finite number >= 0.

    Args:
        name: Name of the argument, for the message.
        value: Value to check.
        hint: Meaning of 0, or other advice, at the end of the message.

    Raises:
        UserError: If it is not.
    """
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"{name} must be a finite number >= 0, got {value}; {hint}")
    return value
