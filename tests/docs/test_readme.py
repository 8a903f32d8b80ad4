"""What the README shows parses, imports and exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from shown_code import code_blocks, printed_config, shown_commands

import xtoken_pl

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_yaml_example_parses_with_every_command_shown_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(code_blocks(README, "yaml")[0])
    Path("more_teachers.yaml").write_text("model: {teachers: {llama: {alpha: 0.5}}}")
    alphas = {}
    for arguments in (arguments for arguments in shown_commands(README) if "run.yaml" in arguments):
        parsed = yaml.safe_load(printed_config([*arguments, "--print_config"], capsys))
        alphas[" ".join(arguments)] = parsed["model"]["init_args"]["teachers"]["llama"]["alpha"]
    changed = {
        "fit --config run.yaml --model.teachers.llama.alpha 0.8": 0.8,
        "fit --config run.yaml --config more_teachers.yaml": 0.5,
    }
    assert alphas == dict.fromkeys(alphas, 0.2) | changed


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shell = "\n".join(code_blocks(README, "sh"))
    targets = re.findall(r"^make (\S+)", shell, flags=re.MULTILINE)
    assert {"quickstart", "test"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


def test_everything_public_is_importable() -> None:
    assert all(hasattr(xtoken_pl, name) for name in xtoken_pl.__all__)
