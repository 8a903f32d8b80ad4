"""The sources of a split and the teachers of each: names, weights and domains, checked before any text is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from xtoken_pl.batch import DOMAIN, Domain, prompt_column, teacher_columns
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.sources.text_source import TextSource
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import did_you_mean

#: One source of texts, or several by name.
Sources = TextSource | dict[str, TextSource]

_FIELDS = {field.name for field in fields(TextSource)}
#: Names that a source cannot have: options of a source, keys of a class, and tags below ``val/``.
_TAKEN = {*_FIELDS, "class_path", "init_args", "dict_kwargs", "bits_per_byte", "ce", "kd", "top1_agreement"}


@dataclass(frozen=True)
class Part:
    """One source of one split.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        name: Name of the source; ``""`` for the only source of a split.
        source: The source.
        teachers: Names of the teachers that may teach on its windows, in the order of the run's teachers.
        first_domain: Index of its first domain among those of its split.
    """

    split: str
    name: str
    source: TextSource
    teachers: tuple[str, ...] = ()
    first_domain: int = 0

    @property
    def key(self) -> str:
        """Name of its windows in the data module and in caches: ``train``, or ``train_math``."""
        return f"{self.split}_{self.name}" if self.name else self.split

    @property
    def label(self) -> str:
        """Name in messages: ``train``, or ``train.math``."""
        return f"{self.split}.{self.name}" if self.name else self.split

    @property
    def setting(self) -> str:
        """Place of the source in a configuration: ``data.train``, or ``data.train.math``."""
        return f"data.{self.label}"

    @property
    def texts(self) -> TextSource:
        """The source without what only says how it is mixed and taught."""
        return replace(self.source, weight=None, teachers=None, alphas=None, teacher_field=None)

    @property
    def domains(self) -> list[Domain]:
        """Its domains: one; or one for each teacher that a row may name, and one for rows that name none."""
        alphas = {name: (self.source.alphas or {}).get(name) for name in self.teachers}
        if self.source.teacher_field is None:
            return [Domain(self.name, alphas)]
        return [*(Domain(self.name, {name: alpha}) for name, alpha in alphas.items()), Domain(self.name, {})]

    def mark(self, window: Window) -> Window:
        """Adds the domain to a window: that of the teacher whose tokens it holds, if rows name their teachers."""
        domain = self.first_domain
        if self.source.teacher_field is not None:
            held = (place for place, name in enumerate(self.teachers) if is_read_by(name, window))
            domain += next(held, len(self.teachers))
        return window | {DOMAIN: domain}

    @contextmanager
    def named(self) -> Any:
        """Raises errors on a source with a name as errors that say it."""
        try:
            yield
        except UserError as error:
            raise self.say_where(error) from None

    def say_where(self, error: UserError) -> UserError:
        """Puts the place of a source with a name before an error's message."""
        return UserError(f"{self.setting}: {error}") if self.name else error


def is_read_by(teacher: str, window: Window) -> bool:
    """Whether a window holds tokens of a teacher, or its prompt does."""
    return any(len(window.get(column, ())) for column in (teacher_columns(teacher)[0], prompt_column(teacher)))


# Before the teachers are known ----------------------------------------------------------------------------------------


def read_parts(split: str, given: Sources | None, *, streaming: bool = False) -> list[Part]:
    """Lists the parts of a split; a source of weight 0 is none.

    Args:
        split: ``train``, ``val`` or ``test``.
        given: Its source or sources; None for a split without texts.
        streaming: Whether ``train`` is streamed.

    Raises:
        UserError: If there are no sources, or their names or weights cannot be used.
    """
    if given is None:
        return []
    sources = given if isinstance(given, dict) else {"": given}
    if not sources:
        raise UserError(f"data.{split} must have at least one source, got {{}}; name one, or leave data.{split} out")
    parts = [Part(split, name, source) for name, source in sources.items()]
    for part in parts:
        if not isinstance(part.source, TextSource):
            raise UserError(f"{part.setting} must be a TextSource, got {part.source!r}; write TextSource(path=...)")
    if isinstance(given, dict):
        _check_names(split, sources)
    _check_weights(split, parts, streaming=streaming)
    return [part for part in parts if part.source.weight != 0]


def _check_names(split: str, names: Iterable[str]) -> None:
    known: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(
                f"names of sources must be letters, digits, _ and -, got {name!r} in data.{split}; rename it"
            )
        if name in _TAKEN:
            raise UserError(
                f"a source cannot be called {name!r}, which is "
                f"{'an option of a source' if name in _FIELDS else 'used in configurations or logs'}; rename it in "
                f"data.{split}"
            )
        if (other := known.setdefault(name.lower(), name)) != name:
            raise UserError(
                f"names of sources must differ by more than upper and lower case (they are names of files), got "
                f"{other!r} and {name!r} in data.{split}; rename one"
            )


def _check_weights(split: str, parts: Sequence[Part], *, streaming: bool) -> None:
    weights = {part.name: part.source.weight for part in parts}
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if given and (split != "train" or "" in given):
        why = "every window is measured once" if split != "train" else "it is the only source"
        raise UserError(
            f"weight is the share of a source in a mixture of several in data.train, but "
            f"{next(part.setting for part in parts if part.name in given)} has weight={next(iter(given.values())):g}, "
            f"and {why}; leave it out"
        )
    if split != "train" or "" in weights:
        return
    if missing := sorted(weights.keys() - given.keys()) if given else []:
        raise UserError(
            f"all sources of data.train must have a weight, or none of them, but {', '.join(missing)} "
            f"{'has' if len(missing) == 1 else 'have'} none, and {', '.join(sorted(given))} "
            f"{'has' if len(given) == 1 else 'have'} one; give every source a weight, or leave all of them out"
        )
    if given and not any(given.values()):
        raise UserError(
            f"at least one source of data.train must have a weight > 0, got {given}; raise one, or leave all out"
        )
    if streaming and not given and len(weights) > 1:
        raise UserError(
            f"a mixture of streams must have weights, since streams have no end, but {', '.join(weights)} have none; "
            "give every source of data.train a weight, or set data.streaming to false"
        )


# With the teachers ----------------------------------------------------------------------------------------------------


def with_teachers(splits: Mapping[str, Sequence[Part]], teachers: Collection[str]) -> dict[str, list[Part]]:
    """Fills in the teachers and domains of all parts.

    Args:
        splits: Parts by split.
        teachers: Names of the teachers of the run.

    Raises:
        UserError: If a source names a teacher that does not exist, or none, or if no source of ``train`` lets a teacher
            teach.
    """
    filled: dict[str, list[Part]] = {}
    for split, parts in splits.items():
        filled[split], first = [], 0
        for part in parts:
            known = replace(part, teachers=_teachers_of(part, teachers), first_domain=first)
            filled[split].append(known)
            first += len(known.domains)
    taught = {name for part in filled["train"] for name in part.teachers}
    if idle := [name for name in teachers if name not in taught]:
        which = " of weight > 0" if any(part.source.weight is not None for part in filled["train"]) else ""
        raise UserError(
            f"every teacher must teach on a source of data.train{which}, but none names teacher {idle[0]!r}; name it "
            f"in the `teachers` or `alphas` of a source, or remove model.teachers.{idle[0]}"
        )
    return filled


def _teachers_of(part: Part, known: Collection[str]) -> tuple[str, ...]:
    source = part.source
    option = "alphas" if source.teachers is None else "teachers"
    for name in source.teachers or source.alphas or ():
        if name not in known:
            near = did_you_mean(name, known, "there are none" if not known else "see model.teachers")
            raise UserError(f"{part.setting}.{option} must name teachers of the run, got {name!r}{near}")
    if source.teachers is not None:
        found = tuple(name for name in known if name in source.teachers)
    else:
        found = tuple(name for name in known if (source.alphas or {}).get(name) != 0)
    if known and not found:
        value = source.teachers if source.alphas is None else source.alphas
        raise UserError(
            f"at least one teacher must teach on every source, but {part.setting} has {option}={value}; name one of "
            f"{', '.join(known)}, or leave {option} out for all of them"
        )
    return found
