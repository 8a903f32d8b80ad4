"""A wrong input of the command line as a test case, and a working directory with whole and damaged files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
import yaml
from damaged_models import damaged, without
from real_tokenizers import wordpiece
from small_models import packing_tokenizer, write_model
from small_run import SPLIT, small_run, write_models, write_texts

from xtoken_pl.cli import main

# Cases ---------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A wrong input: a category and a name, arguments behind `--config run.yaml`, parts of what must be said."""

    name: str
    arguments: tuple[str, ...]
    expected: tuple[str, ...]
    verb: str = "fit"
    #: Over the configuration, in a file of its own; a text as it is.
    config: dict[str, Any] | str | None = None


def case(name: str, arguments: str, *expected: str, verb: str = "fit", config: Any = None) -> Case:
    return Case(name, tuple(arguments.split()), expected, verb, config)


def callback(path: str, **arguments: Any) -> dict[str, Any]:
    return {"trainer": {"callbacks": [{"class_path": path, "init_args": arguments}], "enable_checkpointing": True}}


def arguments_of(wrong: Case, folder: Path) -> list[str]:
    """The command line of a case, behind files that it needs."""
    if wrong.verb in ("audit", "project", "export", "fti"):
        return [wrong.verb, *wrong.arguments]
    extra = ["--config", "split.yaml"] if any(".split." in argument for argument in wrong.arguments) else []
    if wrong.config is not None:
        content = wrong.config if isinstance(wrong.config, str) else yaml.safe_dump(wrong.config)
        (folder / "extra.yaml").write_text(content)
        extra += ["--config", "extra.yaml"]
    alone = isinstance(wrong.config, str) and wrong.config.endswith("#alone")
    base = [] if alone else ["--config", "run.yaml"]
    return [wrong.verb, *base, *extra, *wrong.arguments]


# Files ---------------------------------------------------------------------------------------------------------------


def write_workspace() -> None:
    """Writes models, texts, a cache, a W and a checkpoint, whole and damaged, into the working directory."""
    _write_models()
    _write_damaged_texts()
    Path("run.yaml").write_text(yaml.safe_dump(small_run()))
    Path("split.yaml").write_text(yaml.safe_dump(SPLIT))
    Path("chat.jinja").write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}")
    Path("logs/taken/version_0").mkdir(parents=True)
    Path("logs/taken/version_0/config.yaml").write_text("")
    main(["project", "--student", "student", "--teacher", "split", "--output", "w.safetensors"])
    main(["project", "--student", "student", "--teacher", "same", "--output", "other_w.safetensors"])
    Path("cut_w.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:-100])
    main(["cache", "--config", "run.yaml", "--teacher", "same", "--output", "cache", "--top_k", "8"])
    shutil.copytree("cache", "cut_cache")
    shard = next(Path("cut_cache").rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    main(["fit", "--config", "run.yaml", *_CHECKPOINTS])
    Path("ckpt/last.ckpt").rename("whole.ckpt")
    Path("cut.ckpt").write_bytes(Path("whole.ckpt").read_bytes()[:-1000])
    Path("random.ckpt").write_bytes(os.urandom(500))
    torch.save({"state_dict": {}}, "weights.ckpt")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6"}, "light.ckpt")
    Path("config.yaml").unlink()


_CHECKPOINTS = (
    *("--trainer.enable_checkpointing", "true"),
    *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.dirpath", "ckpt"),
    *("--trainer.callbacks.save_last", "true"),
)


def _write_models() -> None:
    write_models(Path())
    write_model(Path("small_head"), packing_tokenizer(), num_head_rows=500)
    write_model(Path("word_pieces"), wordpiece())
    for name, file in (("no_tokenizer", "tokenizer.json"), ("no_weights", "model.safetensors"), ("odd", "config.json")):
        shutil.copytree("student", name)
        Path(name, file).unlink()
    for name, file in (("cut_weights", "model.safetensors"), ("cut_tokenizer", "tokenizer.json")):
        shutil.copytree("student", name)
        Path(name, file).write_bytes(Path(name, file).read_bytes()[:1000])
    damaged(Path("student"), Path("lacks_layer"), without("layers.1."))
    damaged(Path("student"), Path("one_layer"), without("layers.1."), num_hidden_layers=1)
    Path("empty_folder").mkdir()
    Path("a_file").write_text("text")


def _write_damaged_texts() -> None:
    write_texts(Path(), length=400)
    Path("empty.jsonl").write_text("")
    Path("blank.jsonl").write_text('{"text": ""}\n')
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    Path("numbers.jsonl").write_text('{"text": 3}\n')
    Path("gap.jsonl").write_text('{"text": "some text"}\n{"text": null}\n')
    Path("latin.txt").write_bytes("déjà".encode("latin-1"))
    Path("table.xml").write_text("<text/>\n")
    Path("halves").mkdir()
    Path("halves/a.jsonl").write_text('{"text": "some text"}\n')
    Path("halves/b.jsonl").write_text('{"text": "half \\ud800"}\n')
    datasets.Dataset.from_dict({"text": ["abc"] * 100}).to_parquet("whole.parquet")
    Path("cut.parquet").write_bytes(Path("whole.parquet").read_bytes()[:-10])
