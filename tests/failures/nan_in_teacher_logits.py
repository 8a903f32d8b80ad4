"""A teacher's logits are no numbers as soon as it has read a certain word."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from scenario import command, demonstrate, fail, saved
from transformers import AutoModelForCausalLM, AutoTokenizer

WORD = "§"


def scenario(folder: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "split"),
        AutoTokenizer.from_pretrained(folder / "split"),
    )
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer(WORD)["input_ids"][-1]] = torch.nan
    model.save_pretrained(folder / "split")
    # The second epoch's texts: the first one trains and is saved.
    texts = [json.loads(line)["text"] for line in (folder / "texts/0.jsonl").read_text().splitlines()]
    (folder / "texts/1.jsonl").write_text("".join(json.dumps({"text": WORD + text}) + "\n" for text in texts))
    fail(folder, command(), "teacher 'split'", "losses must be finite")
    assert all(int(name.split("=")[1].split(".")[0]) <= 8 for name in saved(folder))


if __name__ == "__main__":
    demonstrate(scenario)
