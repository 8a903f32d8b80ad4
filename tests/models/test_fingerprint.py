"""The fingerprint of a model identifies its weights and configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_models import packing_tokenizer, write_model

from xtoken_pl.models import model_fingerprint
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
    monkeypatch.setattr("xtoken_pl.models.fingerprint.cached_file", lambda *_, **__: str(snapshot / "config.json"))
    assert model_fingerprint(Teacher(model="some/model")) == f"commit:{commit}"


def test_a_missing_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        model_fingerprint(Teacher(model=str(tmp_path / "nowhere")))
