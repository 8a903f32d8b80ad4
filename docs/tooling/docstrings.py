"""Docstrings as Markdown: the reStructuredText fragments in them, formulas and roles, for mkdocstrings."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, GriffeLoader, Module, NameResolutionError, Object

_ROLE = re.compile(r":(class|func|meth|attr|data|mod|math):`([^`]+)`")
# The directive's line, and the lines below that are indented deeper.
_FORMULA = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*))*)", flags=re.MULTILINE)


def to_markdown(text: str, scope: Object) -> str:
    """A docstring with ``.. math::`` and ``:math:`` as dollars, and with links in place of the other roles.

    Args:
        text: The docstring.
        scope: Where it stands, for names that are not given in full.
    """

    def formula(match: re.Match[str]) -> str:
        body = " ".join(line.strip() for line in match[2].splitlines()).strip()
        return textwrap.indent(f"\n$$\n{body}\n$$\n", match[1])

    def role(match: re.Match[str]) -> str:
        kind, content = match.groups()
        content = " ".join(content.split())  # a line may end in it
        if kind == "math":
            return f"${content}$"
        name = content.split(".")[-1]
        # Optional: what has no place in the reference is shown without a link.
        return f'<autoref identifier="{_full_name(content, scope)}" optional><code>{name}</code></autoref>'

    return _ROLE.sub(role, _FORMULA.sub(formula, text))


def _full_name(name: str, scope: Object) -> str:
    """The dotted path of a name; as it is where it cannot be resolved."""
    first, *rest = name.split(".")
    try:
        return ".".join((scope.resolve(first), *rest))
    except NameResolutionError:
        return name


class MarkdownDocstrings(Extension):
    """Rewrites every docstring of a package once it is loaded."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        self._rewrite(pkg)

    def _rewrite(self, scope: Object) -> None:
        if scope.docstring is not None:
            scope.docstring.value = to_markdown(scope.docstring.value, scope)
        for member in scope.members.values():
            if not member.is_alias:
                self._rewrite(member)  # type: ignore[arg-type]
