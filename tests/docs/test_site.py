"""The documentation builds without a warning, its links lead somewhere, and it loads nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocstrings import Inventory

import xtoken_pl
import xtoken_pl.callbacks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; the build fails at any warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stderr
    return folder


class Elements(HTMLParser):
    """The identifiers and links of a page, and what it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.inside: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loaded += [values[name] for name in ("src", "data-src") if name in values]
        if tag == "link" and values.get("rel") != "canonical":
            self.loaded.append(values.get("href", ""))
        if tag in ("script", "style", "code", "pre"):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text.append(data)


@pytest.fixture(scope="module")
def elements(site: Path) -> dict[Path, Elements]:
    return {page: Elements(page) for page in site.rglob("*.html") if page.name != "404.html"}


@pytest.mark.slow
def test_every_link_within_the_site_leads_to_a_file_and_an_anchor(elements: dict[Path, Elements]) -> None:
    followed = 0
    for page, parsed in elements.items():
        for link in parsed.links:
            parts = urlsplit(link)
            if not parts.scheme:
                target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                target = target / "index.html" if target.is_dir() else target
                assert target.is_file(), f"{link} in {page.name}"
                if parts.fragment and target in elements:
                    assert unquote(parts.fragment) in elements[target].ids, f"{link} in {page.name}"
                followed += 1
    assert followed > 500


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(elements: dict[Path, Elements]) -> None:
    loaded = {source for parsed in elements.values() for source in parsed.loaded}
    assert any(source.endswith("spans.png") for source in loaded)
    assert not [source for source in loaded if urlsplit(source).scheme not in ("", "data") or source.startswith("//")]


@pytest.mark.slow
def test_formulas_and_roles_are_set(elements: dict[Path, Elements]) -> None:
    """Nothing of a formula or of reStructuredText is left as it was written."""
    for page, parsed in elements.items():
        text = "".join(parsed.text)
        assert not re.findall(r"\$\$|\\\(|\\\[|\.\. math|:(?:class|func|meth|attr|data|mod|math):", text), page
    losses = next(page for page in elements if page.parts[-2:] == ("reference", "losses.html"))
    assert losses.read_text().count("<math") > 30


@pytest.mark.slow
def test_every_public_name_is_in_the_inventory(site: Path) -> None:
    with (site / "objects.inv").open("rb") as file:
        documented = set(Inventory.parse_sphinx(file, domain_filter=["py"]))
    public = {f"{package.__name__}.{name}" for package in (xtoken_pl, xtoken_pl.callbacks) for name in package.__all__}
    assert public <= documented, sorted(public - documented)
