"""MkDocs hooks: formulas as MathML, figures of the experiments, no scripts from other hosts."""

from __future__ import annotations

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Path of the figures as pages write it, so that links also work in the repository, without a build.
_FIGURES = "../experiments/figures/"
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)
_MATHJAX = re.compile(r"<script[^>]*mathjax[^>]*>.*?</script>", flags=re.DOTALL | re.IGNORECASE)
_PAGE_LINK = re.compile(r'href="([\w/-]+)\.md(?=["#])')
# Commands that latex2mathml does not know, and their replacements.
_KNOWN = {r"\arg": r"\operatorname{arg}", "{aligned}": "{align*}", r"\mathrm": r"\text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the figures of the experiments' report."""
    for figure in sorted((Path(config.docs_dir) / _FIGURES).glob("*.png")):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure.resolve())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links to the figures to their place in the site."""
    return markdown.replace(_FIGURES, "figures/")


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Converts formulas to MathML, which needs no script."""
    return _FORMULA.sub(lambda match: mathml(html.unescape(match[3]), block=match[2] == "["), content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Removes the script that a notebook page would load, and points its links to the pages of the site."""
    if not page.file.src_uri.endswith(".ipynb"):
        return output
    return _PAGE_LINK.sub(r'href="\1.html', _MATHJAX.sub("", output))


def mathml(formula: str, *, block: bool) -> str:
    """LaTeX as MathML.

    Raises:
        PluginError: If a command is unknown, because it would be shown as it is.
    """
    for unknown, known in _KNOWN.items():
        formula = formula.replace(unknown, known)
    if r"\\" in formula and r"\begin" not in formula:
        formula = rf"\begin{{align*}}{formula}\end{{align*}}"
    result = convert(formula, display="block" if block else "inline")
    if left := re.findall(r"\\\w+|>&<", result):
        raise PluginError(f"latex2mathml does not know {left} in {formula!r}; write it otherwise")
    return result
