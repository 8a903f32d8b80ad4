"""Small models, texts and caches of a teacher, which the tests of this folder share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cached_teachers import data_of, module_of, split_teacher
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl.cli.cache import CacheOptions, build_cache


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, the teachers' configurations and tokenizers without weights, and texts."""
    folder = tmp_path_factory.mktemp("cache")
    write_model(folder / "student", packing_tokenizer(), seed=1)
    write_model(folder / "split", splitting_tokenizer(), seed=2, num_head_rows=520)
    write_model(folder / "same", packing_tokenizer(), seed=3)
    write_model(folder / "unpadded", splitting_tokenizer(), seed=2)
    for name in ("split", "same", "unpadded"):
        shutil.copytree(folder / name, folder / "no_weights" / name, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "train.txt").write_text(TEXTS[1][:3000] + " 12 345 6789" * 20)
    (folder / "val.txt").write_text(TEXTS[2][:1000])
    (folder / "other.txt").write_text(TEXTS[3][:3000])
    (folder / "few.txt").write_text(TEXTS[2][:300])
    return folder


@pytest.fixture(scope="session")
def stored(root: Path) -> Callable[..., str]:
    """Builds a cache, once for every set of options; returns its folder."""
    folders: dict[str, str] = {}

    def build(teacher: str = "split", temperature: float = 1.0, **options: Any) -> str:
        key = f"{teacher} {temperature} {options}"
        if key not in folders:
            folders[key] = str(root / "caches" / str(len(folders)))
            # The windows are those of all teachers of a run.
            teachers = {
                "t": split_teacher(root, model=str(root / teacher), loss="auto_paper", temperature=temperature),
                "split": split_teacher(root),
            }
            module = module_of(root, teachers)
            build_cache(module, data_of(root), CacheOptions(teacher="t", output=folders[key], **options))
        return folders[key]

    return build


@pytest.fixture
def damaged(stored: Callable[..., str], tmp_path: Path) -> Path:
    """A copy of a cache, to be damaged."""
    return Path(shutil.copytree(stored(shard_windows=16), tmp_path / "copy"))
