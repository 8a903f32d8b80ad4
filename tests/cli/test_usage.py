"""What jsonargparse says is shortened to the key, the rule and the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from xtoken_pl.cli.usage import RefusedError, refusal
from xtoken_pl.utilities.errors import UserError, root_cause


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A verb with two files and an option, in the order in which they were given."""
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text("trainer: {max_steps: ten, devices: one}\nmodel: {teachers: {a: {alpha: x}}}\n")
    Path("second.yaml").write_text("trainer: {max_steps: nine}\n")
    return ["fit", "--config", "first.yaml", "--config=second.yaml", "--trainer.num_nodes", "two"]


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("trainer.devices", "one", "trainer.devices in first.yaml"),
        ("trainer.max_steps", "nine", "trainer.max_steps in second.yaml"),
        ("trainer.num_nodes", "two", "--trainer.num_nodes"),
        ("trainer.precision", "64", "trainer.precision"),
    ],
)
def test_the_option_or_the_file_that_set_a_value_is_named(
    arguments: list[str], key: str, value: str, place: str
) -> None:
    message = f"Parser key \"{key}\":\n  Expected a <class 'int'>. Got value: {value}"
    assert str(refusal(RefusedError(message, []), arguments)) == f"{place} must be a whole number, got {value!r}"


def test_the_item_of_a_mapping_is_named(arguments: list[str]) -> None:
    inner = "Parser key \"alpha\":\n    Expected a <class 'float'>. Got value: x"
    message = f'Parser key "model":\n  Parser key "teachers":\n  {inner}'
    expected = "model.teachers.a.alpha in first.yaml must be a number, got 'x'"
    assert str(refusal(RefusedError(message, []), arguments)) == expected


def test_what_cannot_be_shortened_is_shown_whole() -> None:
    assert str(refusal(RefusedError("the parser's own words", []), ["fit"])) == "the parser's own words"


class Particular:
    """Refuses what it is given, because of another error."""

    def __init__(self, a: str) -> None:
        try:
            int(a)
        except ValueError as error:
            raise UserError(f"a must be a number, got {a!r}") from error


def test_an_error_of_a_class_is_shown_whatever_caused_it() -> None:
    with pytest.raises(ValueError, match="a must be a number") as refused:
        Particular("x")
    wrapped = ValueError("a parser's page")
    wrapped.__cause__ = refused.value
    assert root_cause(wrapped) is refused.value
