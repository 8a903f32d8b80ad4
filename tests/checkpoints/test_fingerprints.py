"""Fingerprints name weights and windows, and stay what stored checkpoints and caches say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from small_models import packing_tokenizer, write_model

from xtoken_pl.checkpoints.fingerprints import (
    cached_windows_fingerprint,
    config_fingerprint,
    is_same_model,
    model_fingerprint,
    training_windows_fingerprint,
    window_checksum,
)
from xtoken_pl.specs import Teacher


def test_copies_share_a_fingerprint_and_other_weights_change_it(tmp_path: Path) -> None:
    first = write_model(tmp_path / "first", packing_tokenizer(), seed=1)
    shutil.copytree(first, tmp_path / "copy")
    other = write_model(tmp_path / "other", packing_tokenizer(), seed=2)
    prints = [model_fingerprint(Teacher(model=str(folder))) for folder in (first, tmp_path / "copy", other)]
    assert prints[0] == prints[1] != prints[2]


def test_another_configuration_is_another_model(tmp_path: Path) -> None:
    folder = Path(write_model(tmp_path / "model", packing_tokenizer()))
    before = model_fingerprint(Teacher(model=str(folder)))
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert model_fingerprint(Teacher(model=str(folder))) != before


def test_a_model_on_the_hub_is_named_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "snapshots" / commit
    write_model(snapshot, packing_tokenizer())
    monkeypatch.setattr(
        "xtoken_pl.checkpoints.fingerprints.cached_file", lambda *_, **__: str(snapshot / "config.json")
    )
    assert model_fingerprint(Teacher(model="some/model")) == f"commit:{commit}"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("commit:1", "commit:1", True),
        ("commit:1", "commit:2", False),
        ("commit:1", "sha256:1", None),
        ("commit:1", "server:a+b:-1.00", None),
        ("server:a:-1.00", "server:a+b:-1.00", None),
        ("commit:1", "commit:1+sha256:3", False),
        ("commit:1", "sha256:1+sha256:3", False),
        ("commit:1+sha256:3", "commit:1+sha256:3", True),
        ("commit:1+sha256:3", "commit:1+sha256:4", False),
        ("commit:1+sha256:3", "sha256:1+sha256:4", False),
        ("commit:1+sha256:3", "sha256:1+sha256:3", None),
        ("commit:1+commit:3", "commit:1+sha256:3", None),
        ("commit:1+commit:3", "commit:2+sha256:3", False),
    ],
)
def test_models_differ_where_a_part_that_can_be_compared_does(first: str, second: str, expected: bool | None) -> None:
    assert is_same_model(first, second) is is_same_model(second, first) is expected


def test_a_missing_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        model_fingerprint(Teacher(model=str(tmp_path / "nowhere")))


def test_fingerprints_are_those_that_version_0_1_0_stored(tmp_path: Path) -> None:
    """Its checkpoints and caches would be refused otherwise; the values were computed by that version."""
    rows = [
        {"student_ids": [i, 2 * i + 1, 7], "loss_mask": [0, 1, 1], "t/ids": [i, 5], "t/spans": [0, 1, 0, 1]}
        for i in range(70)
    ]
    windows = Dataset.from_list(rows).with_format("numpy")
    assert training_windows_fingerprint(windows, "maker") == "cb8e371ade76d2f9"
    assert cached_windows_fingerprint(windows, "t") == "33f4f9c03edb94c80b6fed3c54e123df"
    assert window_checksum(windows[3], "t") == 4052765098
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 3000)
    source = Teacher(model=str(tmp_path))
    assert model_fingerprint(source) == "sha256:d2c4ebccfe9a708f557b1347cc504996"
    assert config_fingerprint(source) == "f9d86028c6e0d64e225186f96acb6933"
