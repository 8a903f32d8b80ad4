"""What the README shows parses, imports and exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from shown_code import code_blocks, printed_config, shown_commands

import xtoken_pl
from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.cli.verbs import VERBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return code_blocks(README, language)


def commands() -> list[list[str]]:
    return shown_commands(README)


def test_yaml_example_parses_with_every_command_shown_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(blocks("yaml")[0])
    Path("more_teachers.yaml").write_text("model: {teachers: {llama: {alpha: 0.5}}}")
    shown = [arguments for arguments in commands() if "run.yaml" in arguments and "--help" not in arguments]
    assert [arguments[0] for arguments in shown] == ["fit"] * 4 + ["validate", "fit", "cache"]
    alphas = []
    for arguments in shown:
        parsed = yaml.safe_load(printed_config([*arguments, "--print_config"], capsys))
        alphas.append(parsed["model"]["init_args"]["teachers"]["llama"]["alpha"])
    assert alphas == [0.2, 0.8, 0.5, 0.2, 0.2, 0.2, 0.2]


def test_shipped_configs_in_commands_exist() -> None:
    paths = {word for arguments in commands() for word in arguments if word.startswith("configs/")}
    assert len(paths) == 4
    assert all((ROOT / path).is_file() for path in paths)


def test_every_verb_in_a_command_exists() -> None:
    assert {arguments[0] for arguments in commands()} <= VERBS.keys()


def test_subclass_example_runs() -> None:
    names: dict[str, type[MultiTeacherDistillModule]] = {}
    exec(next(block for block in blocks("python") if "configure_teachers" in block), names)
    module = names["LlamaAndQwen"](ce_weight=0.5)  # type: ignore[call-arg]
    assert module.student_source.model == "meta-llama/Llama-3.2-1B"
    assert [teacher.alpha for teacher in module.teachers.values()] == [0.8, 0.2]


def test_folders_and_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("sh")), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    (tree,) = re.findall(r"^```\n(xtoken_pl/\n.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    for line in tree.splitlines():
        name = line.split()[0]
        assert (ROOT / "xtoken_pl" / name).exists() if line.startswith("  ") else (ROOT / name).exists(), line


def test_everything_public_is_importable() -> None:
    assert all(hasattr(xtoken_pl, name) for name in xtoken_pl.__all__)
