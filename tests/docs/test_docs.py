"""The documentation builds without a warning, its links lead somewhere, and what it shows parses and runs."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from mkdocstrings import Inventory
from shown_code import code_blocks, printed_config, shown_commands
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model

import xtoken_pl
import xtoken_pl.callbacks
from xtoken_pl import MultiTeacherDistillModule, Student, Teacher
from xtoken_pl.cli.verbs import VERBS
from xtoken_pl.data import Windower, collate

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT / "docs").as_posix(): path.read_text() for path in (ROOT / "docs").rglob("*.md")}
EXTENDING = PAGES["extending.md"]
# What a part of a configuration is laid over.
COMPLETE = {"model": {"student": {"model": "a"}, "teachers": {"b": {"model": "b"}}}, "data": {"train": {"path": "c"}}}


# The site ----------------------------------------------------------------------------------------------------------


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


def test_every_public_name_has_a_place_in_the_reference() -> None:
    reference = "".join(text for page, text in PAGES.items() if page.startswith("reference/"))
    placed = set(re.findall(r"^::: (\S+)$", reference, flags=re.MULTILINE))
    missing = {f"xtoken_pl.{name}" for name in xtoken_pl.__all__} - placed
    assert not missing, f"add `::: NAME` to a page of docs/reference for {sorted(missing)}"
    assert "xtoken_pl.callbacks" in placed  # whole: what is in its `__all__` comes by itself


# What the pages show -----------------------------------------------------------------------------------------------


def example_modules() -> dict[str, str]:
    """The Python examples of the page on extending, by the file that the text before them names."""
    modules: dict[str, str] = {}
    for match in re.finditer(r"^```python\n(.*?)^```", EXTENDING, flags=re.MULTILINE | re.DOTALL):
        *_, name = re.findall(r"`(my_\w+)\.py`", EXTENDING[: match.start()])
        modules[name] = match[1]
    return modules


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports an example of the page on extending by its name."""
    for name, code in example_modules().items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return import_module


def test_every_python_example_of_extending_has_a_file() -> None:
    assert len(example_modules()) == len(code_blocks(EXTENDING, "python")) == 5


def configurations(page: str) -> list[str]:
    """What is laid out as the configuration of a run, or as a part of one."""
    parts = {"model", "data", "trainer"}
    return [block for block in code_blocks(PAGES[page], "yaml") if parts & yaml.safe_load(block).keys()]


def test_pages_have_configurations() -> None:
    assert len(configurations("extending.md")) == 6
    assert len(configurations("scaling.md")) == 4


@pytest.mark.parametrize("page", [page for page in PAGES if configurations(page)])
def test_configurations_parse(
    page: str, examples: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are a part of a run are laid over one."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(yaml.safe_dump(COMPLETE))
    for block in configurations(page):
        Path("shown.yaml").write_text(block)
        is_complete = {"model", "data"} <= yaml.safe_load(block).keys()
        before = [] if is_complete else ["--config", "base.yaml"]
        printed = printed_config(["fit", *before, "--config", "shown.yaml", "--print_config"], capsys)
        assert yaml.safe_load(printed)["model"]["class_path"]


def test_verbs_in_pages_exist() -> None:
    shown = {verb for text in PAGES.values() for verb, *_ in shown_commands(text)}
    assert {"fit", "plan", "audit"} <= shown <= VERBS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if shown_commands(text)])
def test_options_of_commands_exist(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for verb, *arguments in shown_commands(PAGES[page]):
        for option, path in pairwise(arguments):
            if option == "--config" and not path.startswith("configs/"):  # the reader's own
                Path(path).write_text(yaml.safe_dump(COMPLETE))
        function = getattr(import_module(f"xtoken_pl.cli.{VERBS[verb].module}"), verb, None)
        if function is not None and "--config" not in arguments:
            options = {word.removeprefix("--").split(".")[0] for word in arguments if word.startswith("--")}
            assert options <= inspect.signature(function).parameters.keys(), (verb, options)
        elif "--help" not in arguments:
            assert printed_config([verb, *arguments, "--print_config"], capsys)


def test_imports_in_pages_exist() -> None:
    imports = [
        (node.module, name.name)
        for text in PAGES.values()
        for block in code_blocks(text, "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    ]
    assert ("xtoken_pl", "DistillDataModule") in imports
    assert all(hasattr(import_module(module), name) for module, name in imports)


def test_make_targets_and_configurations_in_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shell = "\n".join(block for text in PAGES.values() for block in code_blocks(text, "sh"))
    assert all(f"\n{target}:" in makefile for target in re.findall(r"^make (\S+)", shell, flags=re.MULTILINE))
    configurations = set(re.findall(r"configs/\S+?\.yaml", shell))
    assert configurations
    assert all((ROOT / path).is_file() for path in configurations)


def test_evidence_is_that_of_the_readme() -> None:
    """The report writes it into the README; it is copied from there."""
    (evidence,) = re.findall(r"<!-- evidence -->\n\n(.*?)\n\n", README, flags=re.DOTALL)
    assert evidence.startswith("| exact match")
    assert evidence in PAGES["choosing.md"]


def test_relative_links_of_the_readme_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", README, flags=re.M | re.S), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    for link in links:
        path, _, fragment = link.partition("#")
        if not urlsplit(link).scheme:
            assert (ROOT / path).exists(), link
            assert path or fragment in anchors, link
    assert any(link.startswith("docs/") for link in links)


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").glob("*.png"))
    assert pictures
    assert all(picture.stat().st_size < 400_000 for picture in pictures)


# The examples ------------------------------------------------------------------------------------------------------


def test_subclass_example_runs(examples: Callable[[str], ModuleType]) -> None:
    module = examples("my_teachers").LlamaFromQwenAndLlama(ce_weight=0.5)
    assert [teacher.alpha for teacher in module.teachers.values()] == [0.8, 0.2]


def test_loss_and_weighting_examples_train(examples: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """The distance to a copy of the student is zero, to another model it is not, and the copy gets all the weight."""
    loss, weighting = examples("my_losses").CommonHellinger, examples("my_weightings").InverseLoss
    folders = {
        "copy": write_model(tmp_path / "student", packing_tokenizer(), seed=1),
        "other": write_model(tmp_path / "other", reversing_tokenizer(), seed=2),
    }
    teachers = {name: Teacher(model=folder, loss=loss(), alpha=0.5) for name, folder in folders.items()}
    module = MultiTeacherDistillModule(Student(model=folders["copy"]), teachers, weighting())
    module.setup("fit")
    module.configure_model()
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 64)([TEXTS[0][:400]])
    batch = collate([{key: column[0] for key, column in columns.items()}], list(teachers))
    assert (batch.teachers["other"].spans.student_length > 1).any()
    outputs = module.training_step(batch, 0)
    assert isinstance(outputs, dict)
    assert outputs["teacher_kd"]["copy"].item() == pytest.approx(0.0, abs=1e-6)
    assert 0.01 < outputs["teacher_kd"]["other"].item() < 1
    assert outputs["alpha"]["copy"].item() > 0.99
    assert sum(outputs["alpha"].values()).item() == pytest.approx(1.0)
    (outputs["loss"] + outputs["teacher_kd"]["other"] * 0).backward()
    gradients = [parameter.grad for parameter in module.student.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_callback_example_logs_a_ratio(examples: Callable[[str], ModuleType]) -> None:
    class Logged:
        def log(self, tag: str, value: torch.Tensor) -> None:
            self.value = (tag, value.item())

    module = Logged()
    outputs = {"kd": torch.tensor(3.0), "ce": torch.tensor(2.0)}
    examples("my_callbacks").LogRatio().on_train_batch_end(None, module, outputs, None, 0)
    assert module.value == ("train/kd_over_ce", 1.5)
