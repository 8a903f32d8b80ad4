"""Models whose body transformers does not name are trained like others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import write_architecture
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from transformers import AutoModelForCausalLM

from xtoken_pl.cli import main


@pytest.mark.parametrize("kind", ["llama4_text", "no_return_dict"])
def test_models_whose_body_is_found_by_structure_are_planned_trained_and_exported(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Llama 4's text model is its own ``base_model``; a config.json may say that outputs have no names."""
    name, options = ("llama", {"return_dict": False}) if kind == "no_return_dict" else (kind, {})
    write_architecture(tmp_path / "student", name, packing_tokenizer(), seed=1, scale=1.0, **options)
    write_architecture(tmp_path / "teacher", name, packing_tokenizer(), seed=2, **options)
    if kind == "no_return_dict":
        assert json.loads((tmp_path / "student/config.json").read_text())["return_dict"] is False
    write_model(tmp_path / "split", splitting_tokenizer(), seed=2)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text[:200]}) + "\n" for text in TEXTS[:4]))
    teachers = {folder: {"model": str(tmp_path / folder)} for folder in ("teacher", "split")}
    config = {
        "model": {"student": {"model": str(tmp_path / "student")}, "teachers": teachers},
        "data": {"train": {"path": str(texts)}, "sequence_length": 32, "batch_size": 2, "num_workers": 0},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "default_root_dir": str(tmp_path),
            "logger": False,
            "enable_checkpointing": False,
            "callbacks": [
                {
                    "class_path": "xtoken_pl.callbacks.HFExport",
                    "init_args": {"dirpath": str(tmp_path / "export")},
                }
            ],
        },
    }
    (tmp_path / "run.json").write_text(json.dumps(config))
    main(["plan", "--config", str(tmp_path / "run.json"), "--json_output", str(tmp_path / "plan.json")])
    assert json.loads((tmp_path / "plan.json").read_text())
    main(["fit", "--config", str(tmp_path / "run.json")])
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "export").state_dict()
    assert before.keys() == after.keys()
    assert [key for key in before if torch.equal(before[key], after[key])] == []
