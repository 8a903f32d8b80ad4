"""Shortens jsonargparse's messages on invalid arguments to the key, the rule, the value and the nearest name.

jsonargparse reports every type that it tried for a value, level by level, over a page. The message here consists of
the key, the innermost reason, and the option or file that set the value.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser as AnyParser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import reduce
from importlib import import_module
from inspect import isabstract
from itertools import groupby
from typing import Any, NoReturn, cast

from jsonargparse import ArgumentError, ArgumentParser, auto_cli

from xtoken_pl.cli.config_files import config_paths, merge, read_config, refuse_duplicate_keys
from xtoken_pl.cli.source_kinds import SPLITS, are_named, distinguish_sources
from xtoken_pl.cli.verbs import PROGRAM
from xtoken_pl.utilities.errors import UsageError, UserError
from xtoken_pl.utilities.words import did_you_mean, literals, nearest, type_in_words

refuse_duplicate_keys()
distinguish_sources()

_UNKNOWN = re.compile(r"(?:^Option '|accept option '|unrecognized arguments: --)([^\s'=]+)")
_LONGEST_VALUE = 80
_SECRET = ("api_key_env",)  # keys whose value is never shown: a key may be given in place of a variable's name
_LEVELS = ("class_path", "init_args", "dict_kwargs")  # keys that may be omitted on the command line


class RefusedError(ArgumentError):
    """Raised for arguments that a parser refuses; holds the names of the parser's options."""

    def __init__(self, message: str, options: list[str]) -> None:
        super().__init__(None, message)
        self.options = options


class RaisingParser(ArgumentParser):
    """A parser that raises :class:`RefusedError` instead of printing a message and exiting."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise RefusedError(message, list(_options(self))) from ex


def _options(parser: AnyParser) -> Iterator[str]:
    for action in parser._actions:
        if action.dest != "help":
            yield action.dest
        if isinstance(action.choices, Mapping):  # the parsers of verbs
            for inner in action.choices.values():
                yield from _options(inner)


def run_function(function: Callable[..., None], arguments: list[str]) -> None:
    """Runs a verb whose options are the parameters of a function."""
    program = f"{PROGRAM} {arguments[0]}"
    try:
        auto_cli(function, args=arguments[1:], prog=program, as_positional=False, parser_class=RaisingParser)
    except RefusedError as error:
        raise refusal(error, arguments) from error


def refusal(error: RefusedError, arguments: list[str]) -> UsageError:
    """Converts a parser's error to the one that is shown.

    Args:
        error: Error of the parser.
        arguments: The verb and its options, as the user gave them.
    """
    message, innermost, known = str(error), error, error.options
    while innermost.__cause__ is not None and not isinstance(innermost, UserError):
        innermost = innermost.__cause__  # type: ignore[assignment]
        known = getattr(innermost, "options", known)
    reason = str(innermost)
    dotted = ".".join(re.findall(r'Parser key "(.+?)"', message))
    keys = [key for key, _ in groupby(dotted.split("."))] if dotted else []  # each level repeats the one above
    if isinstance(innermost, UserError):
        return UsageError(reason)
    if found := re.search(r"arguments are required: (.+)", reason):
        return UsageError(_missing(found[1].split(", "), keys, arguments))
    if found := _UNKNOWN.search(reason):
        return UsageError(_unknown(found[1], keys, known, arguments))
    if found := re.search(r"unrecognized arguments: (\S+)", reason):
        return UsageError(f"{found[1]!r} is neither an option nor the value of one; options are written --KEY VALUE")
    return UsageError(_wrong_value(message, reason, keys, known, arguments))


def _unknown(option: str, keys: list[str], known: list[str], arguments: list[str]) -> str:
    """Returns the message for an unknown option."""
    first, last = option.partition(".")[0], option.rpartition(".")[2]
    names = {part for name in known for part in (name.partition(".")[0], name.rpartition(".")[2])}
    near = did_you_mean(last if first in names else first, names, "--help lists the options")
    return f"{_place([*keys, *option.split('.')], None, arguments)} is not an option{near}"


def _missing(names: list[str], keys: list[str], arguments: list[str]) -> str:
    """Returns the message for required options that are missing."""
    verb = arguments[0]
    if not keys:
        in_file = any(name.startswith(f"{verb}.") for name in names)
        names = sorted(name.strip().removeprefix(f"{verb}.") for name in names)
        how = "in a file for --config" if in_file else f"with --{' and --'.join(names)}"
        return f"{verb} needs {' and '.join(names)}, not given; set {'it' if len(names) == 1 else 'them'} {how}"
    items, near = keys, ""
    for parts, value in _places(_given(arguments)):
        if _is_at(keys, parts) and isinstance(value, dict) and names[0] not in value:
            items = parts
        complete = [item for item, settings in _items(parts, value) if names[0] in settings]
        for item in (item for item, _ in _items(parts, value) if _is_at(keys, parts) and item not in complete):
            items, near = [*parts, item], did_you_mean(item, complete)
    return _required([*items, names[0]], near)


def refuse_teachers_without_model(teachers: Mapping[str, Any]) -> None:
    """Refuses teachers that name neither a model nor the server's name of it, such as a misspelled name gives.

    Args:
        teachers: Options of the teachers, by name.

    Raises:
        UsageError: If there is one.
    """
    named = [name for name, options in teachers.items() if options.model or (options.server or {}).get("model")]
    for name in teachers.keys() - set(named):
        raise UsageError(_required(["model", "teachers", name, "model"], did_you_mean(name, named)))


def _required(keys: list[str], near: str) -> str:
    return f"{'.'.join(keys)} is required, not given; set it in a file for --config, or as an option{near}"


def _given(arguments: list[str]) -> dict[str, Any]:
    """Merges the files and options of a command line."""
    options = (option[2:].split(".") for option in arguments if option.startswith("--") and "." in option)
    nested = [reduce(lambda value, key: {key: value}, reversed(parts), cast(Any, None)) for parts in options]
    return reduce(merge, [*map(read_config, config_paths(arguments)), *nested], {})


def _items(parts: list[str], value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Lists the items of a mapping of teachers, or of named sources; none for another value."""
    has_items = parts[-1] == "teachers" or (parts[-1] in SPLITS and are_named(value))
    found = value.items() if has_items and isinstance(value, dict) else ()
    return [(item, settings) for item, settings in found if isinstance(settings, dict)]


def _wrong_value(message: str, reason: str, keys: list[str], known: list[str], arguments: list[str]) -> str:
    """Returns the message for an invalid value."""
    if not keys:
        return reason
    inner = message.rpartition("Parser key")[2]
    union = re.search(r"Subtypes: \[(.+)\]", inner)
    whole = re.search(r"Given value: (.+)", inner)
    is_mapping = union is not None and union[1].startswith("dict[") and whole is not None and whole[1].startswith("{")
    # The value that a mapping holds is not that of its key.
    found = whole if is_mapping else re.search(r"(?:Got|Given) value: (.+)", message)
    value = found[1] if found else ""
    types = union[1] if union else reason
    if found := re.search(r"Unable to load config ['\"](.+?)['\"]", reason):
        value = found[1]
        options = (name.rpartition(".")[2] for name in known if name.startswith(f"{keys[-1]}."))
        first = next((option for option in options if option != "help"), "path")
        rule = _mapping_rule(first, value)
    elif spec := re.search(r"<class '(xtoken_pl\.specs\.\w+)\.(\w+)'>", types):
        rule = _mapping_rule(fields(getattr(import_module(spec[1]), spec[2]))[0].name, value)
    elif kind := re.search(r"subclass of (\w+)", reason):
        paths = [path for path, cls in _public_classes().items() if kind[1] in (base.__name__ for base in cls.__mro__)]
        rule = f"must be the path of a {kind[1]}, got {value!r}; choose one of {', '.join(paths) or 'its subclasses'}"
    elif "has no attribute" in reason or "No module named" in reason:
        value = [value, *re.findall(r"given class_path '(.+?)'", message)][-1]
        near = did_you_mean(value, _public_classes(), "check the spelling")
        rule = f"must be the path of a class, got {value!r}: {reason}{near}"
    elif words := type_in_words(types):
        shown = value if value[:1] in ("[", "{") else repr(value)
        shown = "another value, which may be secret" if keys[-1] in _SECRET else shown
        shown = shown if len(shown) <= _LONGEST_VALUE else f"{shown[:_LONGEST_VALUE]}..."
        alike = nearest(value, literals(types))
        rule = f"must be {words}, got {shown}" + ("" if alike is None else f"; did you mean {alike}?")
    else:
        rule = f"cannot be used: {reason}"
    return f"{_place(keys, value, arguments)} {rule}"


def _mapping_rule(first: str, value: str) -> str:
    """Returns the rule for a value in place of a mapping whose first option is ``first``."""
    hint = f"; did you mean {{{first}: {value}}}?"
    if value == "None":  # jsonargparse takes null for a path
        value, hint = "null", "; to have none, set it to null in a file for --config"
    elif value[:1] in ("[", "{"):
        hint = ""
    return f"must be a mapping of options, got {value!r}{hint}"


def reason_of_union(message: str) -> str | None:
    """Finds the reason of a class that refuses its options among the types that jsonargparse tried; None for others."""
    tried = ("Does not validate", "Not a valid subclass", "Expected a", "a class path", "a dict ")
    reasons = [line.strip()[2:] for line in message.splitlines() if line.strip().startswith("- ")]
    return next((reason for reason in reasons if not reason.startswith(tried)), None)


def _public_classes() -> dict[str, Any]:
    """Returns the package's classes that a configuration can name, by path."""
    return {
        f"{package}.{name}": value
        for package in ("xtoken_pl", "xtoken_pl.callbacks")
        for name in import_module(package).__all__
        if isinstance(value := getattr(import_module(package), name), type) and not isabstract(value)
    }


def _place(keys: list[str], value: str | None, arguments: list[str]) -> str:
    """Finds the option, or the key and the file, that set a value.

    Args:
        keys: Keys from the outermost to the innermost; names of a mapping's items may be missing.
        value: Text of the value; None if unknown.
        arguments: The verb and its options.
    """
    for argument, following in reversed(list(zip(arguments, [*arguments[1:], ""], strict=True))):
        option, equals, given = argument.partition("=")
        given = given if equals else following
        if option.startswith("--") and value in (None, given) and _is_at(keys, option[2:].split(".")):
            return option
    for path in reversed(config_paths(arguments)):
        for parts, given in _places(read_config(path)):
            if _is_at(keys, parts) and value in (None, str(given)):
                return re.sub(r"\.(\d+)", r"[\1]", ".".join(parts)) + f" in {path}"
    return ".".join(keys)


def _is_at(keys: list[str], parts: list[str]) -> bool:
    """Whether a path contains all of the keys, in order, and ends with the last one."""
    names = [part.removesuffix("+") for part in parts if part not in _LEVELS and not part.isdigit()]
    rest = iter(names)
    return names[-1:] == keys[-1:] and all(key in rest for key in keys)


def _places(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Any]]:
    """Yields the path of every key of a configuration, and its value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield [*above, str(key)], inner
        yield from _places(inner, (*above, str(key)))
