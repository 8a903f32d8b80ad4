"""Layouts of a cache: chosen by what is read of the teacher, and named where they do not fit; caches of format 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_teachers import data_of, module_of, set_up, split_teacher
from own_losses import hidden_cosine

from xtoken_pl import ALM, BytePrefixKL, ConfidenceWeighting, ProjectionKL, SimCT, StrictTopK, Weighting
from xtoken_pl.audit import Recommendation
from xtoken_pl.cli.cache import CacheOptions, build_cache
from xtoken_pl.losses.row_content import RowContent, RowKind
from xtoken_pl.teachers.cache.manifest import Manifest
from xtoken_pl.training import binding
from xtoken_pl.utilities.errors import UserError


def build(
    root: Path, folder: Path, loss: Any = "auto_paper", weighting: Weighting | None = None, **options: Any
) -> Manifest:
    module = module_of(root, {"t": split_teacher(root, loss=loss)}, weighting=weighting)
    return build_cache(module, data_of(root, val=None), CacheOptions(teacher="t", output=str(folder), **options))


@pytest.mark.parametrize(
    ("loss", "weighting", "rows"),
    [
        ("auto_paper", None, "span_starts"),
        (ProjectionKL(), None, "span_starts"),
        (ProjectionKL(), ConfidenceWeighting("cross_entropy"), "span_starts"),
        (ProjectionKL(), ConfidenceWeighting("entropy"), "all"),
        (ProjectionKL(merge="mean"), None, "all"),
        (BytePrefixKL(), None, "all"),
        (SimCT(), None, "all"),
        (StrictTopK(16), None, "span_starts"),
        (ALM(), None, "span_starts"),
    ],
)
def test_a_cache_has_the_rows_that_loss_and_weighting_read(
    root: Path, tmp_path: Path, loss: Any, weighting: Weighting | None, rows: str
) -> None:
    assert build(root, tmp_path / "cache", loss, weighting, top_k=4).identity.rows == rows
    cache = str(tmp_path / "cache")
    module = module_of(root, {"t": split_teacher(root, loss=loss, cache=cache)}, weighting=weighting)
    set_up(module, data_of(root, val=None))
    assert module.caches["t"].gives == RowContent(rows, 4)


def test_a_cache_of_a_rule_has_the_rows_that_the_chosen_loss_reads(
    root: Path, tmp_path: Path, stored: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_span_starts = stored(rows="span_starts")
    monkeypatch.setattr(binding, "recommend_loss", lambda *_, **__: Recommendation("BytePrefixKL", "a test says so"))
    assert build(root, tmp_path / "cache", "auto", top_k=4).identity.rows == "all"
    with pytest.raises(UserError, match=r"\(BytePrefixKL\) reads every row of the teacher, and its cache has one row"):
        module_of(root, {"t": split_teacher(root, loss="auto", cache=of_span_starts)}).setup("fit")


def test_a_layout_that_lacks_what_is_read_is_refused_with_the_way_out(
    root: Path, tmp_path: Path, stored: Callable[..., str]
) -> None:
    way_out = "build the cache with --rows all, or leave `cache` out"
    one_row = r"\(BytePrefixKL\) reads every row of the teacher, and its cache has one row for each span;"
    with pytest.raises(UserError, match=f"{one_row}.*{way_out}"):
        build(root, tmp_path / "cache", BytePrefixKL(), rows="span_starts")
    with pytest.raises(UserError, match=f"{one_row}.*{way_out}"):
        module_of(root, {"t": split_teacher(root, loss=BytePrefixKL(), cache=stored())}).setup("fit")
    weighting = ConfidenceWeighting("max_probability")
    with pytest.raises(UserError, match=f"ConfidenceWeighting.*reads every row of teacher 't'.*{way_out}"):
        module_of(root, {"t": split_teacher(root, cache=stored())}, weighting=weighting).setup("fit")
    with pytest.raises(UserError, match="reads hidden states of the teacher, and its cache has no hidden states"):
        build(root, tmp_path / "cache", hidden_cosine(32, 32))
    with pytest.raises(UserError, match="rows must be one of span_starts, all, got 'most'"):
        build(root, tmp_path / "cache", rows="most")
    assert not (tmp_path / "cache").exists()
    build(root, tmp_path / "cache", rows="span_starts", top_k=4)
    with pytest.raises(UserError, match="other settings: rows is 'span_starts' in the cache, 'all' in this run"):
        build(root, tmp_path / "cache", BytePrefixKL(), top_k=4)


@pytest.mark.parametrize("rows", ["span_starts", "all"])
def test_the_rows_of_kept_spans_alone_are_stored(root: Path, stored: Callable[..., str], rows: RowKind) -> None:
    manifest = Manifest.load(Path(stored(rows=rows)))
    data = set_up(module_of(root, {"t": split_teacher(root)}), data_of(root), "validate")
    views = [batch.teachers["t"] for batch in data.val_dataloader()]
    kept = sum(len(view.spans) if rows == "span_starts" else len(view.tokens.rows) for view in views)
    assert sum(entry.num_rows for entry in manifest.shards["val"]) == kept


def as_format_2(cache: str | Path, folder: Path) -> Path:
    """A copy of a cache with the manifest that earlier versions wrote; their shards are the same, byte for byte."""
    copy = Path(shutil.copytree(cache, folder))
    content = json.loads((copy / "manifest.json").read_text())
    content["format"] = "xtoken_pl.teacher_cache.v2"
    assert content["identity"].pop("rows") == "span_starts"
    for entry in (entry for part in content["shards"].values() for entry in part):
        entry["num_spans"] = entry.pop("num_rows")
    (copy / "manifest.json").write_text(json.dumps(content))
    return copy


def test_a_cache_of_format_2_gives_the_same_rows(root: Path, stored: Callable[..., str], tmp_path: Path) -> None:
    def rows(cache: str | Path) -> list[torch.Tensor]:
        data = set_up(module_of(root, {"t": split_teacher(root, cache=str(cache))}), data_of(root), "validate")
        known = [batch.teachers["t"].known for batch in data.val_dataloader()]
        return [values for each in known for values in (each.top.log_probs, each.log_continuation, each.log_span)]

    old = as_format_2(stored(), tmp_path / "old")
    assert all(map(torch.equal, rows(stored()), rows(old)))
    with pytest.raises(UserError, match="has one row for each span"):
        module_of(root, {"t": split_teacher(root, loss=BytePrefixKL(), cache=str(old))}).setup("fit")


def test_an_unfinished_cache_of_format_2_is_resumed(root: Path, tmp_path: Path) -> None:
    options = {"top_k": 4, "shard_windows": 8}
    build(root, tmp_path / "whole", **options)
    old = as_format_2(tmp_path / "whole", tmp_path / "old")
    content = json.loads((old / "manifest.json").read_text())
    (old / content["shards"]["train"].pop()["file"]).unlink()
    (old / "manifest.json").write_text(json.dumps(content))
    first = (old / "train-000000.safetensors").stat().st_ino
    build(root, old, **options)
    assert (old / "train-000000.safetensors").stat().st_ino == first
    for path in (tmp_path / "whole").iterdir():
        assert (old / path.name).read_bytes() == path.read_bytes()


def test_an_unknown_format_is_refused(root: Path, stored: Callable[..., str], tmp_path: Path) -> None:
    copy = as_format_2(stored(), tmp_path / "copy")
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace("cache.v2", "cache.v9"))
    with pytest.raises(UserError, match=r"format 'xtoken_pl.teacher_cache.v9'.*rebuild the cache with overwrite"):
        Manifest.load(copy)
