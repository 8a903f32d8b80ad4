"""A teacher's logits are no numbers as soon as it has read a certain word, which some texts hold."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from scenario import command, demonstrate, fail, saved, succeed
from transformers import AutoModelForCausalLM, AutoTokenizer

WORD = "§"


def scenario(folder: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "split"),
        AutoTokenizer.from_pretrained(folder / "split"),
    )
    with torch.no_grad():
        # NaN is refused when it is loaded
        model.get_input_embeddings().weight[tokenizer(WORD)["input_ids"][-1]] = -torch.inf
    model.save_pretrained(folder / "split")
    # A run over texts without the word is learned and saved; another one, beside it, meets the word.
    succeed(folder, command("--trainer.max_steps", "4"))
    before = saved(folder)
    read = (folder / "texts/0.jsonl").read_text().splitlines()
    lines = [json.dumps({"text": f"{WORD} {json.loads(line)['text']}"}) for line in read]
    (folder / "spoiled.jsonl").write_text("\n".join(lines))
    fail(
        folder,
        command("--data.train.path", "spoiled.jsonl", "--trainer.default_root_dir", "spoiled"),
        "teacher 'split'",
        "must be finite",
    )
    assert saved(folder) == before == ["step=2.ckpt", "step=4.ckpt"]
    for name in before:
        weights = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights)


if __name__ == "__main__":
    demonstrate(scenario)
