"""Finds the smallest part of what was given that jsonargparse refuses, and says what is wrong with it.

jsonargparse reports every type that a value was tried as, level by level, over a page. Here the tree of values is gone
through with the types that it checks them against, and jsonargparse is the judge of every leaf. Where nothing is found,
its own message is shown whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from inspect import Parameter
from typing import Any, NamedTuple, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from xtoken_pl.cli.config_files import read_config
from xtoken_pl.cli.given import Given, Place, is_config_file
from xtoken_pl.utilities.words import choices, did_you_mean, in_words, members, nearest

_PLAIN_MODULES = ("builtins", "pathlib", "datetime", "typing", "collections.abc", "collections")
_LONGEST_VALUE = 80


class _Problem(NamedTuple):
    place: Place
    reason: str


class _Options(NamedTuple):
    """The options of one level, with their types; a mapping stands for the level below."""

    of: str
    hints: Mapping[str, Any]
    required: tuple[str, ...] = ()


def explain(parser: Any, message: str, arguments: list[str]) -> str:
    """What is wrong with the arguments.

    Args:
        parser: The parser that refused them.
        message: What it said.
        arguments: As they were given, the verb first.
    """
    try:
        return _explain(parser, message, arguments) or message
    except Exception:  # rather jsonargparse's page than an error about an error
        return message


def _explain(parser: Any, message: str, arguments: list[str]) -> str | None:
    verb, *rest = arguments
    subcommands = getattr(parser, "_subcommands_action", None)
    if subcommands is not None:
        parser = subcommands.choices[verb]
    actions = [action for action in parser._actions if getattr(action, "_typehint", None) is not None]
    known = {option.lstrip("-") for action in parser._actions for option in action.option_strings}
    given = Given.of(rest, known)
    if given.stray:
        return f"{given.stray[0]!r} is neither an option nor the value of one; options are written --KEY VALUE"
    problem = _of_options(_top(verb, actions), given.tree, ())
    if problem is not None:
        return f"{given.name(problem.place)} {problem.reason}"
    if found := re.search(r"arguments are required: (.+)", message):
        names = [name.strip().removeprefix(f"{verb}.") for name in found[1].split(",")]
        how = "in a file for --config" if subcommands is not None else f"with --{names[0]}"
        return f"{verb} needs {' and '.join(sorted(names, reverse=subcommands is not None))}, not given; set it {how}"
    return None


def _top(verb: str, actions: list[Any]) -> _Options:
    """The options of a verb; those of the trainer, whose keys have dots, are a level of their own."""
    hints: dict[str, Any] = {}
    for action in actions:
        first, _, rest = action.dest.partition(".")
        if not rest:
            hints[first] = action._typehint
            continue
        level = hints.setdefault(first, _Options(first.capitalize(), {}))
        level.hints[rest] = action._typehint
    return _Options(verb, {**hints, "config": str})


def _of_options(options: _Options, values: Any, place: Place) -> _Problem | None:
    if is_config_file(values):
        values = read_config(values)
    if not isinstance(values, dict):
        return _Problem(place, f"must be a mapping of options, got {_shown(values)}")
    for given in values:
        key = str(given).removesuffix("+")
        if key not in options.hints:
            near = did_you_mean(key, options.hints.keys(), "--help lists the options")
            return _Problem((*place, given), f"is no option of {options.of}{near}")
    for given, value in values.items():
        hint = options.hints[str(given).removesuffix("+")]
        inside = (*place, str(given).removesuffix("+"))
        problem = _of_options(hint, value, inside) if isinstance(hint, _Options) else _of_value(hint, value, inside)
        if problem is not None:
            return problem
    for key in options.required:
        if key not in values:
            reason = "is required, not given; set it in a file for --config, or as an option"
            return _Problem((*place, key), reason)
    return None


def _of_value(hint: Any, value: Any, place: Place) -> _Problem | None:
    chosen = _choose(hint, value)
    kind = get_origin(chosen) or chosen
    if isinstance(value, dict) and kind is dict:
        _, hint_of_items = get_args(chosen) or (Any, Any)
        return _first(_of_value(hint_of_items, item, (*place, key)) for key, item in value.items())
    if isinstance(value, list) and _is_sequence(chosen) and kind is not tuple and (hints := get_args(chosen)):
        return _first(_of_value(hints[0], item, (*place, index)) for index, item in enumerate(value))
    if _is_class(chosen) and isinstance(value, (str, dict)):
        return _of_class(chosen, value, place)
    if _accepts(hint, value):
        return None
    if isinstance(value, dict) and any(_is_class(member) for member in members(hint)):
        return None  # one of several classes: only the whole message says what was tried
    return _Problem(place, _mismatch(hint, value))


def _choose(hint: Any, value: Any) -> Any:
    """The type of a union that a value of this form is meant for, if it is one only; else the union."""
    options = members(hint)
    if isinstance(value, dict):
        options = tuple(option for option in options if _is_class(option) or get_origin(option) is dict)
    elif isinstance(value, list):
        options = tuple(option for option in options if _is_sequence(option))
    elif isinstance(value, str) and str not in options and _names_a_class(value):
        options = tuple(option for option in options if _is_class(option))
    elif len(options) > 1:
        options = tuple(option for option in options if option is not type(None))
    return options[0] if len(options) == 1 else hint


def _of_class(base: type, value: Any, place: Place) -> _Problem | None:
    """A class, written as its path, as ``class_path`` and ``init_args``, or short, as its arguments alone."""
    if is_config_file(value):
        value = read_config(value)
    if isinstance(value, str):
        if is_dataclass(base) and not _names_a_class(value):
            required = _options_of(base).required
            way_out = f"; did you mean {{{required[0]}: {value}}}?" if len(required) == 1 else ""
            return _Problem(place, f"must be a mapping of options, got {_shown(value)}{way_out}")
        value, is_short = {"class_path": value}, True
    else:
        is_short = False
    if "class_path" not in value:
        inside, arguments = (place, value) if "init_args" not in value else ((*place, "init_args"), value["init_args"])
        return _of_options(_options_of(base), arguments, inside)
    path = value["class_path"]
    found, reason = _find_class(base, path)
    if found is None:
        return None if reason is None else _Problem(place if is_short else (*place, "class_path"), reason)
    if stray := [key for key in value if key not in ("class_path", "init_args", "dict_kwargs")]:
        reason = "must stand under init_args, since class_path is given; move it there"
        return _Problem((*place, stray[0]), reason)
    if "dict_kwargs" in value:
        return None
    return _of_options(_options_of(found), value.get("init_args") or {}, (*place, "init_args"))


def _find_class(base: type, path: Any) -> tuple[type | None, str | None]:
    """The class of a path, or what is wrong with it; neither where that cannot be told."""
    known = subclass_paths(base)
    by_name = {known_path.rpartition(".")[2]: known_path for known_path in known}
    module, _, name = str(path).rpartition(".")
    rule = f"must be the path of a {base.__name__}"
    alike = nearest(name, by_name)
    way_out = f"; did you mean {by_name[alike]}?" if alike else did_you_mean(str(path), known, "check the spelling")
    if not module:  # among the known ones the name is enough
        if name not in by_name:
            return None, f"{rule}, got {name!r}{way_out}"
        module, _, name = by_name[name].rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        return None, f"{rule}, and for {path!r} there is no module {error.name}{way_out}"
    except Exception as error:
        return None, f"{rule}, and the module {module} cannot be imported ({type(error).__name__}: {error}); mend it"
    if found is None:
        return None, f"{rule}, and {module} has no {name}{way_out}"
    if not isinstance(found, type):
        return None, None
    if not issubclass(found, base):
        others = [other for other in known if other.startswith("xtoken_pl.")] or known
        return None, f"{rule}, and {path} is none{did_you_mean(str(path), others, 'choose another class')}"
    return found, None


def subclass_paths(base: type) -> list[str]:
    """The import paths of the classes of a kind, as far as they are loaded; our own callbacks are."""
    from jsonargparse._typehints import get_all_subclass_paths

    import_module("xtoken_pl.callbacks")
    return [path for path in get_all_subclass_paths(base) if not path.startswith("xtoken_pl.cli.")]


def _options_of(cls: type) -> _Options:
    from jsonargparse._parameter_resolvers import get_signature_parameters

    parameters = get_signature_parameters(cls, None)
    required = tuple(parameter.name for parameter in parameters if parameter.default is Parameter.empty)
    return _Options(cls.__name__, {parameter.name: parameter.annotation for parameter in parameters}, required)


def _accepts(hint: Any, value: Any) -> bool:
    """Whether jsonargparse takes a value, as a file or the command line gives it."""
    if hint in (Any, Parameter.empty):
        return True
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    attempts: list[Any] = [lambda: parser.parse_object({"value": value})]
    if isinstance(value, (str, int, float)):
        attempts.append(lambda: parser.parse_args([f"--value={value}"]))
    for attempt in attempts:
        try:
            attempt()
        except ArgumentError:
            continue
        return True
    return False


def _mismatch(hint: Any, value: Any) -> str:
    rule = f"must be {in_words(hint)}, got {_shown(value)}"
    if not isinstance(value, str):
        return rule
    names = {word: word for word in choices(hint)}
    for member in filter(_is_class, members(hint)):
        names |= {path.rpartition(".")[2]: path for path in subclass_paths(member)}
    alike = nearest(value, names)
    return rule if alike is None else f"{rule}; did you mean {names[alike]}?"


def _first(problems: Any) -> _Problem | None:
    return next((problem for problem in problems if problem is not None), None)


def _is_class(hint: Any) -> bool:
    return isinstance(hint, type) and get_origin(hint) is None and hint.__module__ not in _PLAIN_MODULES


def _is_sequence(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    return isinstance(kind, type) and kind is not str and kind is not dict and hasattr(kind, "__iter__")


def _names_a_class(value: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value))


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'}"
    text = "null" if value is None else repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
