"""mkdocstrings extension: converts the reStructuredText in docstrings (formulas and roles) to Markdown."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, GriffeLoader, Module, NameResolutionError, Object

_ROLE = re.compile(r":(class|func|meth|attr|data|mod|math):`([^`]+)`")
# The line of the directive, and the more deeply indented lines below it.
_FORMULA = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*))*)", flags=re.MULTILINE)


def to_markdown(text: str, scope: Object) -> str:
    """Converts ``.. math::`` and ``:math:`` to dollar signs, and the other roles to links.

    Args:
        text: The docstring.
        scope: Object that the docstring belongs to; relative names are resolved in it.
    """

    def formula(match: re.Match[str]) -> str:
        body = " ".join(line.strip() for line in match[2].splitlines()).strip()
        return textwrap.indent(f"\n$$\n{body}\n$$\n", match[1])

    def role(match: re.Match[str]) -> str:
        kind, content = match.groups()
        content = " ".join(content.split())  # a name may contain a line break
        if kind == "math":
            return f"${content}$"
        name = content.split(".")[-1]
        # Optional: names that are not in the reference are shown without a link.
        return f'<autoref identifier="{_full_name(content, scope)}" optional><code>{name}</code></autoref>'

    return _ROLE.sub(role, _FORMULA.sub(formula, text))


def _full_name(name: str, scope: Object) -> str:
    """Dotted path of a name, or the name itself if it cannot be resolved."""
    first, *rest = name.split(".")
    try:
        return ".".join((scope.resolve(first), *rest))
    except NameResolutionError:
        return name


class MarkdownDocstrings(Extension):
    """Converts every docstring of a package after it is loaded."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        self._rewrite(pkg)

    def _rewrite(self, scope: Object) -> None:
        if scope.docstring is not None:
            scope.docstring.value = to_markdown(scope.docstring.value, scope)
        for member in scope.members.values():
            if not member.is_alias:
                self._rewrite(member)  # type: ignore[arg-type]
