"""A teacher's logits are no numbers as soon as it has read a certain word, which comes late in a run."""

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
        model.get_input_embeddings().weight[tokenizer(WORD)["input_ids"][-1]] = torch.nan
    model.save_pretrained(folder / "split")
    # One epoch without the word is learned and saved; a run that goes on over other texts meets it.
    texts = [path.read_text() for path in sorted((folder / "texts").iterdir())]
    num_steps = sum(len(text.splitlines()) for text in texts) // 2
    succeed(folder, command("--trainer.max_steps", "4"))
    before = saved(folder)
    lines = [json.dumps({"text": f"{WORD} {json.loads(line)['text']}"}) for line in texts[0].splitlines()]
    (folder / "spoiled.jsonl").write_text("\n".join(lines))
    fail(
        folder,
        command("--data.train.path", "spoiled.jsonl", "--trainer.max_steps", str(num_steps)),
        "teacher 'split'",
        "must be finite",
    )
    assert saved(folder) == before == ["step=2.ckpt", "step=4.ckpt"]
    for name in before:
        weights = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights)


if __name__ == "__main__":
    demonstrate(scenario)
