"""The engine that the page on extending shows writes as the engine of transformers does."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from shown_code import code_blocks
from small_models import TEXTS, packing_tokenizer, write_model
from transformers import AutoModelForCausalLM

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.rollouts import Request, Sampling, TransformersEngine

PAGE = (Path(__file__).parents[2] / "docs/extending.md").read_text()


@pytest.mark.parametrize("num_head_rows", [None, 650, 750])
def test_engine_writes_the_most_probable_tokens(
    num_head_rows: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a head that has as many rows as the tokenizer has tokens, fewer or more."""
    (code,) = (code for code in code_blocks(PAGE, "python") if "(RolloutEngine)" in code)
    (tmp_path / "my_engines.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_engines", raising=False)
    engine = import_module("my_engines").GreedyEngine()
    monkeypatch.delitem(sys.modules, "my_engines")

    tokenizer = packing_tokenizer()
    student = AutoModelForCausalLM.from_pretrained(
        write_model(tmp_path / "student", tokenizer, num_head_rows=num_head_rows)
    ).train()
    vocabulary = CanonicalVocabulary.from_tokenizer(tokenizer)
    prompts = [ids for ids in tokenizer([text[:60] for text in TEXTS[:4]])["input_ids"] if max(ids) < 650]
    assert prompts
    sampling = Sampling(max_new_tokens=12, temperature=0)
    (first, *_) = TransformersEngine().write([Request(prompts[0], frozenset(), (0,))], sampling, student, vocabulary)
    stop_ids = frozenset({first.ids[4]})  # a token that is written
    requests = [Request(ids, stop_ids, (place,)) for place, ids in enumerate(prompts)]
    written = engine.write(requests, sampling, student, vocabulary)
    assert written == TransformersEngine().write(requests, sampling, student, vocabulary)
    assert written[0].ended == "stop"
    assert student.training
    assert engine.write([], sampling, student, vocabulary) == []
