"""What is installed is what is in the repository, and pyproject.toml declares what it needs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: Modules that a file imports in an environment of its own, which the Makefile installs.
ELSEWHERE = {"benchmarks/peers/trl_run.py": {"trl"}}
#: Extras that `make test-lowest` installs.
LOWEST_EXTRAS = ("quickstart", "adapters", "tokenizers")


def test_every_package_of_the_repository_can_be_imported_as_installed() -> None:
    rooms = [file.parent.relative_to(ROOT) for file in (ROOT / "xtoken_pl").rglob("__init__.py")]
    assert rooms
    for room in rooms:
        import_module(".".join(room.parts))
    assert metadata.version("xtoken_pl") == import_module("xtoken_pl").__version__


# Dependencies -----------------------------------------------------------------------------------------------------


def requirements(*extras: str) -> dict[str, Requirement]:
    """The requirements of the package itself and of some extras, which may name others, by canonical name."""
    found: dict[str, Requirement] = {}
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            found |= requirements(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def imported(folders: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Modules of other distributions that the files of some folders import, each with the file."""
    own = {path.stem for folder in ("tests", "docs/tooling") for path in (ROOT / folder).rglob("*.py")}
    own |= {"xtoken_pl", "benchmarks", "experiments", *sys.stdlib_module_names}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                names = [node.module]
            yield from ((name.split(".")[0], path) for name in names if name.split(".")[0] not in own)


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (["xtoken_pl", "callbacks"], ["adapters", "eval", "quantization", "quickstart", "tokenizers", "trackers"]),
        (["experiments"], ["experiments"]),
        (["docs/tooling"], ["docs"]),
        (["benchmarks", "tests"], ["dev"]),
    ],
    ids=["package", "experiments", "docs", "tests"],
)
def test_every_imported_distribution_is_declared(folders: list[str], extras: list[str]) -> None:
    declared = requirements(*extras)
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for module, path in imported(folders)
        if module not in ELSEWHERE.get(path.relative_to(ROOT).as_posix(), ())
        and not any(canonicalize_name(name) in declared for name in _distributions().get(module, [module]))
    }
    assert undeclared == set()


def test_tested_lowest_versions_are_those_that_are_promised() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = {
        canonicalize_name(name): Version(version)
        for name, version in (line.split("==") for line in lines if not line.startswith("#"))
    }
    promised = {}
    for name, requirement in requirements(*LOWEST_EXTRAS).items():
        lower = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        assert len(lower) == 1, f"{requirement} must have one lower bound"
        promised[name] = Version(lower[0])
    assert tested == promised
    makefile = (ROOT / "Makefile").read_text()
    assert f"-c constraints-lowest.txt -e '.[{','.join(LOWEST_EXTRAS)}]'" in makefile


# Distributions ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wheel_and_source_distribution_hold_every_file_of_the_package_once(tmp_path: Path) -> None:
    checkout, output = tmp_path / "checkout", tmp_path / "dist"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(output), str(checkout)], check=True)
    [wheel], [source] = output.glob("*.whl"), output.glob("*.tar.gz")
    expected = sorted(
        f"xtoken_pl/{path.relative_to(folder.parent if folder.name == 'callbacks' else folder).as_posix()}"
        for folder in (checkout / "xtoken_pl", checkout / "callbacks")
        for path in folder.rglob("*")
        if path.suffix in (".py", ".html") or path.name == "py.typed"
    )
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(name for name in archive.namelist() if ".dist-info/" not in name) == expected
    with tarfile.open(source) as archive:
        files = [member.name.partition("/")[2] for member in archive if member.isfile()]
        assert not [member for member in archive if member.issym() or member.islnk()]
    assert (
        sorted(name for name in files if re.search(r"\.(py|html)$|py\.typed$", name) and "tests/" not in name)
        == expected
    )
    assert import_from_wheel(wheel, tmp_path) == import_module("xtoken_pl").__version__


def import_from_wheel(wheel: Path, folder: Path) -> str:
    """Unpacks a wheel, imports it from another folder than the checkout, and returns its version."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    code = "import xtoken_pl, xtoken_pl.callbacks as c; assert 'unpacked' in c.__file__; print(xtoken_pl.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "unpacked")},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
