"""A cache holds the windows of the sources that its teacher teaches on, by source, and is opened for these alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cached_teachers import LENGTH, module_of, split_teacher
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import DistillDataModule, Teacher, TextSource, TokenKL
from xtoken_pl.batch import DOMAIN, NO_WINDOW, cached_column
from xtoken_pl.cli.cache import CacheOptions, build_cache
from xtoken_pl.data.part_windows import open_windows
from xtoken_pl.data.windows import Windower
from xtoken_pl.teachers.local import FrozenModel
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and two files of texts."""
    root = tmp_path_factory.mktemp("mixture")
    write_model(root / "student", packing_tokenizer(), seed=1)
    write_model(root / "split", splitting_tokenizer(), seed=2)
    write_model(root / "same", packing_tokenizer(), seed=3)
    for name, texts in {"math": TEXTS[:3], "my-web": TEXTS[3:6]}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text[:200]}) + "\n" for text in texts))
    return root


def data_of(root: Path, **options: dict[str, Any]) -> DistillDataModule:
    given = {"math": {"teachers": ["split"]}, "my-web": {}}
    train = {
        name: TextSource(path=str(root / f"{name}.jsonl"), **(options.get(name, own))) for name, own in given.items()
    }
    return DistillDataModule(
        train, TextSource(path=train["math"].path), sequence_length=LENGTH, batch_size=4, num_workers=0
    )


def teachers_of(root: Path, **caches: str) -> dict[str, Teacher]:
    same = Teacher(model=str(root / "same"), loss=TokenKL(), cache=caches.get("same"))
    return {"split": split_teacher(root, cache=caches.get("split")), "same": same}


@pytest.fixture(scope="module")
def caches(root: Path) -> dict[str, str]:
    """Caches of both teachers."""
    for name in ("split", "same"):
        module = module_of(root, teachers_of(root))
        build_cache(module, data_of(root), CacheOptions(teacher=name, output=str(root / f"cache_{name}"), top_k=8))
    return {name: str(root / f"cache_{name}") for name in ("split", "same")}


def test_a_cache_holds_the_sources_of_its_teacher(root: Path, caches: dict[str, str]) -> None:
    held = {
        name: {path.name.rpartition("-")[0] for path in Path(caches[name]).glob("*.safetensors")} for name in caches
    }
    assert held == {"split": {"train_math", "train_my-web", "val"}, "same": {"train_my-web", "val"}}


def test_windows_of_other_sources_are_not_made(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[str] = []
    pieces = Windower.pieces

    def noted(self: Windower, documents: Any, *arguments: Any, **options: Any) -> Any:
        read.extend(documents)
        return pieces(self, documents, *arguments, **options)

    monkeypatch.setattr(Windower, "pieces", noted)
    path = tmp_path / "math.jsonl"
    path.write_text(json.dumps({"text": "no window is made of this"}) + "\n")
    data = data_of(root, math={"teachers": ["split"]})
    data.splits["train"][0].source.path = str(path)
    options = CacheOptions(teacher="same", output=str(tmp_path / "cache"), top_k=8)
    build_cache(module_of(root, teachers_of(root)), data, options)
    assert "no window is made of this" not in read


def test_windows_are_read_with_the_spans_of_their_teachers(root: Path, caches: dict[str, str]) -> None:
    module, data = module_of(root, teachers_of(root, **caches)), data_of(root)
    module.connect(data)
    data.setup("fit")
    windows = open_windows(data.parts("train"))
    first = data.parts("train")[0].size
    read = [{name for name in caches if cached_column(name) in w} for w in windows.__getitems__([0, first, NO_WINDOW])]
    assert read == [{"split"}, {"split", "same"}, {"split"}]
    assert len(windows[first][cached_column("same")]["log_span"]) > 0


def test_a_source_that_the_cache_lacks_is_named(root: Path, caches: dict[str, str]) -> None:
    module = module_of(root, teachers_of(root, **caches))
    data = data_of(root, math={})
    module.connect(data)
    with pytest.raises(UserError, match=r"has no 'train_math' split \(it has train_my-web, val\).*build another"):
        data.setup("fit")


@pytest.mark.parametrize("top_k", [8, "all"])
def test_rows_without_the_teacher_are_stored_without_running_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top_k: Any
) -> None:
    """The first batches have none, so that the model is not yet on its device."""
    names = [None, "same", "split", None, "split"]
    rows = [{"text": text[:100], "expert": name} for text, name in zip(TEXTS, names, strict=False)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = TextSource(path=str(tmp_path / "rows.jsonl"), teacher_field="expert")

    def data() -> DistillDataModule:
        return DistillDataModule(source, sequence_length=LENGTH, batch_size=1, num_workers=0)

    runs: list[int] = []
    run = FrozenModel.run
    monkeypatch.setattr(
        FrozenModel, "run", lambda model, ids, *more: (runs.append(len(ids)), run(model, ids, *more))[1]
    )
    output = str(tmp_path / "cache")
    build_cache(module_of(root, teachers_of(root)), data(), CacheOptions(teacher="split", output=output, top_k=top_k))
    module, cached = module_of(root, teachers_of(root, split=output)), data()
    module.connect(cached)
    cached.setup("fit")
    windows = open_windows(cached.parts("train"))
    held = [len(windows[index][cached_column("split")]["log_span"]) for index in range(len(windows))]
    assert [num > 0 for num in held] == [window[DOMAIN] == 0 for window in (windows[i] for i in range(len(windows)))]
    assert held[0] == 0
    assert runs == [1] * sum(num > 0 for num in held)
