"""What the documentation shows parses, runs and exists."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import urlsplit

import pytest
import torch
import yaml
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
DOCUMENTS = {**PAGES, "README.md": README}
# Partial configurations are merged into this one.
COMPLETE = {
    "model": {"student": {"model": "a"}, "teachers": {"llama": {"model": "b"}}},
    "data": {"train": {"path": "c"}},
}


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
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports an example of the page on extending by its name; other tests write modules of the same names."""
    for name, code in example_modules().items():
        (tmp_path / f"{name}.py").write_text(code)
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module
    for name in example_modules():
        sys.modules.pop(name, None)


def test_every_python_example_of_extending_has_a_file() -> None:
    examples = example_modules()
    assert len(examples) == len(code_blocks(EXTENDING, "python"))
    assert "my_losses" in examples


def configurations(page: str) -> list[str]:
    """The YAML blocks of a page that are the configuration of a run, or a part of one."""
    parts = {"model", "data", "trainer"}
    return [block for block in code_blocks(PAGES[page], "yaml") if parts & yaml.safe_load(block).keys()]


def test_pages_have_configurations() -> None:
    assert all(map(configurations, ("configuration.md", "data.md", "extending.md", "scaling.md")))


@pytest.mark.parametrize("page", [page for page in PAGES if configurations(page)])
def test_configurations_parse(
    page: str, examples: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Partial configurations are merged into a complete one."""
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


def test_readme_shows_every_verb() -> None:
    assert {verb for verb, *_ in shown_commands(README)} == VERBS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in DOCUMENTS.items() if shown_commands(text)])
def test_options_of_commands_exist(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for verb, *arguments in shown_commands(DOCUMENTS[page]):
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


def test_layout_names_every_package() -> None:
    (tree,) = re.findall(r"^```\n(xtoken_pl/\n.*?)^```", PAGES["layout.md"], flags=re.MULTILINE | re.DOTALL)
    inner = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    outer = {line.split()[0] for line in tree.splitlines() if not line.startswith("  ")}
    packages = {f"{path.parent.name}/" for path in (ROOT / "xtoken_pl").glob("*/__init__.py")}
    assert inner == packages - {"callbacks/"}
    assert all((ROOT / name).is_dir() for name in outer)


def test_evidence_is_that_of_the_readme() -> None:
    """The report writes it into the README; it is copied from there."""
    (evidence,) = re.findall(r"<!-- evidence -->\n\n(.*?)\n\n", README, flags=re.DOTALL)
    assert evidence.startswith("| exact match")
    assert evidence in PAGES["results.md"]


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


def test_callback_example_logs_a_ratio_of_steps_on_the_data(examples: Callable[[str], ModuleType]) -> None:
    logged: dict[str, torch.Tensor] = {}
    module = SimpleNamespace(log=lambda tag, value: logged.update({tag: value}))
    callback = examples("my_callbacks").LogRatio()
    outputs = {"kd": torch.tensor(3.0), "ce": torch.tensor(2.0)}
    callback.on_train_batch_end(None, module, outputs | {"is_rollout": True}, None, 0)
    assert not logged  # no cross-entropy is learned
    callback.on_train_batch_end(None, module, outputs | {"is_rollout": False}, None, 0)
    assert logged == {"train/kd_over_ce": torch.tensor(1.5)}
