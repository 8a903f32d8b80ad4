"""A catalogue of wrong inputs: each gives one message with rule, value and way out, soon, and no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import lightning.pytorch as pl
import pytest
import torch
import yaml
from real_tokenizers import wordpiece
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from torch.utils.data import DataLoader

from xtoken_pl import DistillDataModule, TextSource
from xtoken_pl.cli import main
from xtoken_pl.cli.config_files import merge
from xtoken_pl.cli.explain import explain
from xtoken_pl.cli.given import Given
from xtoken_pl.cli.preflight import check_fit
from xtoken_pl.cli.report import run
from xtoken_pl.specs import Teacher

MOST_SECONDS = 20
MOST_CHARACTERS = 600

CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "model": {
        "student": {"model": "student"},
        "teachers": {"same": {"model": "same", "loss": {"class_path": "xtoken_pl.TokenKL"}}},
    },
    "data": {
        "train": {"path": "texts.jsonl"},
        "val": {"path": "texts.jsonl"},
        "sequence_length": 48,
        "batch_size": 2,
        "num_workers": 0,
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    },
}

#: A second teacher, for the cases that name it.
SPLIT = {"model": {"teachers": {"split": {"model": "split", "loss": {"class_path": "xtoken_pl.ProjectionKL"}}}}}

#: A logger of one version, whose folder holds another run.
TAKEN = {
    "class_path": "lightning.pytorch.loggers.CSVLogger",
    "init_args": {"save_dir": "logs", "name": "taken", "version": 0},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, texts, a cache, a W and a checkpoint, whole ones and damaged ones."""
    root = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        _write_models()
        _write_texts()
        Path("run.yaml").write_text(yaml.safe_dump(CONFIG))
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
    return root


_CHECKPOINTS = (
    *("--trainer.enable_checkpointing", "true"),
    *("--trainer.callbacks+", "lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.dirpath", "ckpt"),
    *("--trainer.callbacks.save_last", "true"),
)


def _write_models() -> None:
    write_model(Path("student"), packing_tokenizer(), seed=1)
    write_model(Path("split"), splitting_tokenizer(), seed=2)
    write_model(Path("same"), packing_tokenizer(), seed=3)
    write_model(Path("small_head"), packing_tokenizer(), num_head_rows=500)
    write_model(Path("word_pieces"), wordpiece())
    for name, file in (("no_tokenizer", "tokenizer.json"), ("no_weights", "model.safetensors"), ("odd", "config.json")):
        shutil.copytree("student", name)
        Path(name, file).unlink()
    for name, file in (("cut_weights", "model.safetensors"), ("cut_tokenizer", "tokenizer.json")):
        shutil.copytree("student", name)
        Path(name, file).write_bytes(Path(name, file).read_bytes()[:1000])
    Path("empty_folder").mkdir()
    Path("a_file").write_text("text")


def _write_texts() -> None:
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text[:400]}) + "\n" for text in TEXTS[:4]))
    Path("empty.jsonl").write_text("")
    Path("blank.jsonl").write_text('{"text": ""}\n')
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    Path("numbers.jsonl").write_text('{"text": 3}\n')
    Path("gap.jsonl").write_text('{"text": "some text"}\n{"text": null}\n')
    Path("latin.txt").write_bytes("déjà".encode("latin-1"))
    Path("table.csv").write_text("text\n")
    datasets.Dataset.from_dict({"text": ["abc"] * 100}).to_parquet("whole.parquet")
    Path("cut.parquet").write_bytes(Path("whole.parquet").read_bytes()[:-10])


# The table ------------------------------------------------------------------------------------------------------------


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


_MONITOR = "lightning.pytorch.callbacks.ModelCheckpoint"
TABLE = [
    # Conversations and packing
    case(
        "chat: no such field",
        "--data.train.messages_field talk --model.student.chat_template chat.jinja "
        "--model.teachers.same.chat_template chat.jinja",
        *("must be a column", "'talk'", "name one of them"),
    ),
    case("chat: prompt alone", "--data.train.prompt_field text", "belong together", "'text'", "set completion_field"),
    case(
        "chat: no messages",
        "--data.train.messages_field text --model.student.chat_template chat.jinja "
        "--model.teachers.same.chat_template chat.jinja",
        *("text must hold a list of at least one message", "got str", "remove such rows"),
    ),
    case(
        "chat: no template",
        "--data.train.messages_field text",
        *("conversations need a chat template on every side", "student", "name a Jinja file"),
    ),
    case("chat: missing template", "--model.student.chat_template no.jinja", "must be a Jinja file", "'no.jinja'"),
    case("chat: packing", "--data.packing seperate", "one of none, joined, separate", "'seperate'", "did you mean"),
    # Adapters
    case("adapters: rank", "--model.student.adapter.rank 0", "rank of an adapter must be >= 1", "got 0", "leave the"),
    case(
        "adapters: random weights",
        "--model.student.adapter.rank 4 --model.student.weights random",
        *("leaves the weights below it as they are", "weights='random'", "use pretrained weights"),
    ),
    case(
        "adapters: no such layers",
        "--model.student.adapter.target_modules [q_prj]",
        *("must be linear layers below the head", "q_prj", "are called"),
    ),
    case(
        "adapters: quantized alone", "--model.student.quantization 4bit", "cannot be trained", "'4bit'", "give it one"
    ),
    # Looking at a window
    case("inspect: window", "--weights false --window 99999", "must be one of", "99999", "choose one", verb="inspect"),
    # Configuration
    case("config: unknown verb", "", "the first word must be one of fit", "'fti'", "did you mean fit?", verb="fti"),
    case("config: no file", "--config", "--config must be a YAML file", "got nothing", "write --config FILE"),
    case("config: missing file", "--config no.yaml", "must be a YAML file", "'no.yaml'", "check the path"),
    case("config: no YAML", "", "extra.yaml' is no YAML", "may have been cut off", config="model: {student: ["),
    case("config: no mapping", "", "must be a YAML mapping", "holds list", "give another file", config="[1, 2]"),
    case(
        "config: a teacher given twice",
        "",
        *("a key must be given once", "'same' in lines 3 and 4", "rename or remove one"),
        config="model:\n  teachers:\n    same: {alpha: 1}\n    same: {alpha: 2}\n",
    ),
    case("config: unknown section", "", "modle in extra.yaml is no", "did you mean model?", config={"modle": {"a": 1}}),
    case("config: unknown option", "--cofnig x", "--cofnig is no option of fit", "did you mean config?"),
    case("config: stray word", "stray", "'stray' is neither an option nor", "--KEY VALUE"),
    case(
        "config: unknown option of a module",
        "--model.studnet.model x",
        *("--model.studnet is no option of MultiTeacherDistillModule", "did you mean student?"),
    ),
    case(
        "config: unknown option of the student",
        "",
        *("model.student.wieghts in extra.yaml is no option of Student", "did you mean weights?"),
        config={"model": {"student": {"wieghts": "random"}}},
    ),
    case(
        "config: unknown option of a teacher",
        "--model.teachers.same.alfa 1",
        *("--model.teachers.same.alfa is no option of Teacher", "did you mean alpha?"),
    ),
    case("config: unknown option of data", "--data.sequence_lenght 9", "did you mean sequence_length?"),
    case("config: unknown option of texts", "--data.train.pth x", "is no option of TextSource", "did you mean path?"),
    case(
        "config: unknown option of the trainer",
        "",
        *("trainer.max_setps in extra.yaml is no option of Trainer", "did you mean max_steps?"),
        config={"trainer": {"max_setps": 3}},
    ),
    case(
        "config: unknown option of a callback",
        "",
        "trainer.callbacks[0].init_args.num_batch in extra.yaml is no option of NumeralMonitor",
        "did you mean num_batches?",
        config=callback("xtoken_pl.callbacks.NumeralMonitor", num_batch=3),
    ),
    case(
        "config: unknown option of a loss",
        "--model.teachers.split.loss.divergance reverse",
        *("--model.teachers.split.loss.divergance is no option of ProjectionKL", "did you mean divergence?"),
    ),
    case(
        "config: unknown callback",
        "",
        "trainer.callbacks[0].class_path in extra.yaml must be the path of a Callback",
        *("has no TeacherMonitr", "did you mean xtoken_pl.callbacks.TeacherMonitor?"),
        config=callback("xtoken_pl.callbacks.TeacherMonitr"),
    ),
    case(
        "config: unknown package",
        "--model.teachers.same.loss xtoken_p.TokenKL",
        *("there is no module xtoken_p", "did you mean xtoken_pl.TokenKL?"),
    ),
    case("config: word of another case", "--model.teachers.same.loss Auto", "got 'Auto'", "did you mean auto?"),
    case(
        "config: callback for a loss",
        "--model.teachers.same.loss xtoken_pl.callbacks.TeacherMonitor",
        *("must be the path of a SpanLoss", "TeacherMonitor is none", "there are xtoken_pl.BytePrefixKL"),
    ),
    case("config: word for a number", "--model.teachers.same.alpha abc", "same.alpha must be a number", "got 'abc'"),
    case("config: word for a whole number", "--trainer.max_steps ten", "must be a whole number", "got 'ten'"),
    case("config: list for a number", "--model.teachers.same.temperature [1]", "must be a number", "got a list"),
    case(
        "config: unknown choice",
        "--model.teachers.split.loss.divergence revers",
        *("must be one of forward, reverse, jensen_shannon", "got 'revers'", "did you mean reverse?"),
    ),
    case(
        "config: teachers as a list",
        "",
        *("model.teachers in extra.yaml must be a mapping", "got a list"),
        config={"model": {"teachers": [{"model": "same"}]}},
    ),
    case(
        "config: student as a path",
        "",
        *("model.student in extra.yaml must be a mapping", "got 'student'", "did you mean {model: student}?"),
        config={"model": {"student": "student"}},
    ),
    case(
        "config: teacher without a model",
        "",
        *("model.teachers.third.model", "is required", "set it in a file"),
        config={"model": {"teachers": {"third": {"alpha": 1}}}},
    ),
    case(
        "config: nothing at all", "", "fit needs model and data", "set it in a file for --config", config="{}\n#alone"
    ),
    case(
        "config: option of a verb", "--studnet a --teacher b", "--studnet is no", "did you mean student?", verb="audit"
    ),
    case("config: verb without an option", "--student a", "audit needs teacher", "with --teacher", verb="audit"),
    case("config: negative alpha", "--model.teachers.same.alpha -1", "alpha must be a finite number >= 0", "got -1"),
    case("config: alpha that is no number", "--model.teachers.same.alpha .nan", "must be a finite number", "got nan"),
    case(
        "config: every alpha zero",
        "--model.teachers.same.alpha 0 --model.teachers.split.alpha 0",
        *("alpha must be > 0", "'split': 0.0", "raise one, or"),
    ),
    case(
        "config: temperature 0", "--model.teachers.same.temperature 0", "temperature must be > 0", "got 0", "1 leaves"
    ),
    case("config: nothing to learn", "--model.ce_weight 0 --model.kd_weight 0", "must be > 0", "got 0 and 0"),
    case("config: learning rate", "--model.optimizer.learning_rate -1", "learning_rate must be > 0", "got -1"),
    case(
        "config: scaling beside fixed weights",
        "--model.kd_weight 0.5",
        *("exclude each other", "kd_weight=0.5", "remove the callback, or the weights"),
        config=callback("xtoken_pl.callbacks.DynamicLossScaling"),
    ),
    case(
        "config: monitored tag that is not logged",
        "",
        *("must be a tag that is logged", "'val/bits_per_bite'", "did you mean val/bits_per_byte?"),
        config=callback(_MONITOR, monitor="val/bits_per_bite"),
    ),
    case(
        "config: monitored without texts",
        "--data.val null",
        *("needs texts to validate on", "'val/ce'", "set data.val.path"),
        config=callback(_MONITOR, monitor="val/ce"),
    ),
    case("config: no steps", "--trainer.max_steps 0", "max_steps must be >= 1", "got 0", "give a number"),
    case("config: negative steps", "--trainer.max_steps -5", "max_steps` must be", "-5", "under trainer"),
    case("config: no gradients", "--trainer.accumulate_grad_batches 0", "must be >= 1", "got 0", "with 1 every batch"),
    case(
        "config: teacher with a space",
        "",
        "must be letters",
        "'a b'",
        config={"model": {"teachers": {"a b": {"model": "same"}}}},
    ),
    case(
        "config: kept configuration",
        "",
        "taken/version_0/config.yaml is the configuration of another run",
        "choose another folder",
        config={"trainer": {"logger": TAKEN}},
    ),
    # Data
    case("data: missing", "--data.train.path no.jsonl", "there is no file or directory 'no.jsonl'", "check the path"),
    case("data: empty", "--data.train.path empty.jsonl", "at least one text", "'empty.jsonl' is empty", "give another"),
    case("data: empty texts", "--data.train.path blank.jsonl", "must hold some text", "'blank.jsonl'", "give another"),
    case("data: other field", "--data.train.text_field body", "must be a column", "'body'", "has ['text']", "name one"),
    case("data: numbers", "--data.train.path numbers.jsonl", "must hold strings", "holds int", "name another column"),
    case("data: null", "--data.train.path gap.jsonl", "every text must be a string", "NoneType", "remove such rows"),
    case(
        "data: broken line", "--data.train.path broken.jsonl", "'broken.jsonl' could not be read", "row 1", "Check that"
    ),
    case("data: latin-1", "--data.train.path latin.txt", "must be UTF-8", "'latin.txt' is not", "convert it"),
    case("data: cut parquet", "--data.train.path cut.parquet", "'cut.parquet' could not", "is whole", "Parquet magic"),
    case("data: other kind", "--data.train.path table.csv", "must be of one kind", "['.csv']", "Name one kind"),
    case("data: empty folder", "--data.train.path empty_folder", "must hold .txt", "'empty_folder' has none", "check"),
    case("data: no match", "--data.train.path no/*.jsonl", "no file matches 'no/*.jsonl'", "relative paths start at"),
    case("data: other split", "--data.train.split vla", "(split 'vla')", "that the split is train"),
    case("data: no texts to test on", "", "test needs texts", "set data.test.path", verb="test"),
    case("data: short windows", "--data.sequence_length 1", "must be at least 2", "got 1"),
    case("data: no windows", "--data.sequence_length 0", "sequence_length must be >= 1", "got 0"),
    case("data: long windows", "--data.sequence_length 1024", "at most the positions", "got 1024", "lower it to 512"),
    case("data: no batch", "--data.batch_size 0", "batch_size must be >= 1", "got 0"),
    case("data: workers", "--data.num_workers -1", "num_workers must be >= 0", "got -1", "0 loads batches in"),
    case(
        "data: stream without an end",
        "--data.streaming true --trainer.max_steps -1",
        *("a stream has no epochs", "got -1", "give a number of steps"),
    ),
    case(
        "data: validation inside a stream's epoch",
        "--data.streaming true --trainer.val_check_interval 0.5",
        *("must be a whole number of steps", "got 0.5", "set data.streaming to false"),
    ),
    case(
        "data: validation after the epoch",
        "--trainer.val_check_interval 100000",
        *("(100000) must be less than or equal to", "set `check_val_every_n_epoch=None`"),
    ),
    # Tokenizers
    case(
        "tokenizers: missing", "--model.student.model ./no", "must be a folder with a tokenizer.json", "'./no'", "Check"
    ),
    case("tokenizers: not in the folder", "--model.student.model no_tokenizer", "'no_tokenizer' has no tokenizer.json"),
    case("tokenizers: cut", "--model.student.model cut_tokenizer", "'cut_tokenizer' could not be loaded", "Check the"),
    case(
        "tokenizers: word pieces", "--model.student.model word_pieces", "'word_pieces'", "WordPiece", "Use a byte-level"
    ),
    case(
        "tokenizers: text to audit",
        "--student student --teacher split --text no.txt",
        "'no.txt'",
        "check",
        verb="audit",
    ),
    # Models
    case("models: no weights", "--model.student.model no_weights", "of the student", "'no_weights'", "Check the path"),
    case(
        "models: cut weights", "--model.student.model cut_weights", "must be whole", "'cut_weights'", "copy or download"
    ),
    case(
        "models: no configuration", "--model.student.model odd", "of the student", "'odd' could not", "Check the path"
    ),
    case("models: small head", "--model.student.model small_head", "a row for every token", "500 rows", "resize its"),
    case(
        "models: attention",
        "--model.student.attn_implementation nosuch",
        *("of the student", 'attn_implementation="nosuch"', "or the options"),
    ),
    case(
        "models: offloaded and quantized",
        "--model.teachers.same.cpu_offload true --model.teachers.same.quantization 4bit",
        *("exclude each other", "'4bit'", "leave one out"),
    ),
    case(
        "models: token by token across vocabularies",
        "--model.teachers.split.loss xtoken_pl.TokenKL",
        *("TokenKL needs the same vocabulary", "use "),
    ),
    # W
    case(
        "W: missing", "--model.teachers.split.projection no.st", "written by `python -m xtoken_pl project`", "'no.st'"
    ),
    case("W: cut", "--model.teachers.split.projection cut_w.safetensors", "'cut_w.safetensors' is no whole", "rebuild"),
    case(
        "W: another file", "--model.teachers.split.projection student/model.safetensors", "is no projection", "make one"
    ),
    case(
        "W: another pair",
        "--model.teachers.split.projection other_w.safetensors",
        "must belong to",
        "700",
        "Rebuild it",
    ),
    case("W: no use", "--model.teachers.same.projection w.safetensors", "TokenKL uses none", "leave `projection` out"),
    case("W: learned without use", "--model.teachers.same.learn_projection true", "TokenKL gives", "use ProjectionKL"),
    case(
        "W: there already",
        "--student student --teacher split --output w.safetensors",
        "exists",
        "another path",
        verb="project",
    ),
    case(
        "W: gamma", "--student a --teacher b --output c --gamma 2", "gamma must be in (0, 1]", "got 2", verb="project"
    ),
    # Caches
    case("caches: missing", "--model.teachers.same.cache no", "that `python -m xtoken_pl cache` wrote", "'no' has no"),
    case(
        "caches: of another teacher",
        "--model.teachers.split.cache cache",
        "'cache' of teacher 'split'",
        "leave `cache`",
    ),
    case(
        "caches: other temperature",
        "--model.teachers.same.cache cache --model.teachers.same.temperature 2",
        *("'cache' of teacher 'same'", "temperature", "Give what it was built with"),
    ),
    case("caches: cut shard", "--model.teachers.same.cache cut_cache", "must have", "it has", "cache` again"),
    case(
        "caches: stream",
        "--model.teachers.same.cache cache --data.streaming true",
        *("a stream has none", "'same'", "set data.streaming to false"),
    ),
    case("caches: unknown teacher", "--teacher nobody", "must be one of same", "got 'nobody'", verb="cache"),
    case("caches: no folder", "--teacher same", "a cache needs a folder", "'same'", "give --output", verb="cache"),
    # Checkpoints
    case("checkpoints: missing", "--ckpt_path no.ckpt", "must be a checkpoint", "'no.ckpt'", "check the path"),
    case("checkpoints: cut", "--ckpt_path cut.ckpt", "must be whole", "'cut.ckpt' is not", "whole.ckpt"),
    case("checkpoints: random bytes", "--ckpt_path random.ckpt", "must be whole", "500 bytes", "whole.ckpt"),
    case(
        "checkpoints: another file of torch", "--ckpt_path weights.ckpt", "that a run wrote", "holds state_dict", "give"
    ),
    case("checkpoints: weights alone", "--ckpt_path light.ckpt", "states of optimizers", "'light.ckpt'", "another one"),
    case(
        "checkpoints: last of none",
        "--ckpt_path last",
        "needs a checkpoint",
        "there is none in",
        "leave --ckpt_path out",
    ),
    case(
        "checkpoints: of another student",
        "--ckpt_path whole.ckpt --model.student.model split --model.teachers.same.loss auto",
        *("the student of the checkpoint has another tokenizer", "start a new run"),
    ),
    case(
        "checkpoints: of another teacher",
        "--ckpt_path whole.ckpt --model.teachers.same.model student",
        *("teacher 'same' has another weights", "start a new run"),
    ),
    case(
        "checkpoints: export of none",
        "--checkpoint no.ckpt --output out",
        *("there is no checkpoint at 'no.ckpt'", "check the path"),
        verb="export",
    ),
    case(
        "checkpoints: export to what exists",
        "--checkpoint whole.ckpt --output student",
        *("student exists", "choose another path"),
        verb="export",
    ),
    case(
        "checkpoints: below a file",
        "--trainer.default_root_dir a_file/x",
        "Not a directory",
        "a_file/x",
        "check the path",
    ),
    # Devices
    case("devices: no GPU", "--trainer.accelerator gpu", "accelerator=gpu", "No supported gpu", "under trainer"),
    case("devices: unknown accelerator", "--trainer.accelerator gpo", "accelerator='gpo'", "Available names", "cpu"),
    case("devices: none", "--trainer.devices 0", "devices=0", "not a valid input using cpu", "under trainer"),
    case("devices: a word", "--trainer.devices many", "should be an int > 0", "devices=many", "under trainer"),
    case("devices: precision", "--trainer.precision float7", "must be one of 64, 32, 16", "got 'float7'", "16-mixed"),
    case("devices: strategy", "--trainer.strategy ddpp", "invalid strategy name", "strategy='ddpp'", "ddp_spawn"),
    case("devices: sharded without a GPU", "--trainer.strategy fsdp", "requires a GPU", "strategy=fsdp", "Please set"),
    case("devices: plan for no memory", "--gpu_memory 0", "gpu_memory must be > 0", "got 0", "80 is", verb="plan"),
]


#: Rules that the tests of their own parts hold, too.
SLOW = {
    *("config: every alpha zero", "config: learning rate", "config: temperature 0", "config: alpha that is no number"),
    *("data: null", "data: other split", "data: no match", "data: empty folder", "data: other kind", "data: no batch"),
    *("tokenizers: word pieces", "tokenizers: cut", "models: attention", "models: no configuration"),
    *("W: cut", "W: another file", "W: no use", "W: learned without use", "caches: of another teacher"),
    *("caches: other temperature", "caches: stream", "checkpoints: random bytes", "checkpoints: of another student"),
    *("devices: a word", "devices: none", "devices: unknown accelerator", "config: negative steps"),
}


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


@pytest.fixture
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("XTOKEN_PL_TRACEBACK", raising=False)
    return workspace


def the_message(said: str) -> str:
    """The one message in what was said."""
    messages = re.findall(r"^error: (.*)$", said, flags=re.MULTILINE)
    assert len(messages) == 1, said
    return messages[0]


@pytest.mark.parametrize(
    "wrong",
    [pytest.param(wrong, id=wrong.name, marks=[pytest.mark.slow] * (wrong.name in SLOW)) for wrong in TABLE],
)
def test_a_wrong_input_gives_one_message_soon(inside: Path, capfd: pytest.CaptureFixture[str], wrong: Case) -> None:
    begin = time.monotonic()
    code = run(main, arguments_of(wrong, inside))
    took = time.monotonic() - begin
    captured = capfd.readouterr()
    message = the_message(captured.err)
    assert code in (1, 2)
    assert [part for part in wrong.expected if part not in message] == [], message
    assert "Traceback" not in captured.out + captured.err
    assert len(message) <= MOST_CHARACTERS
    assert took < MOST_SECONDS


def test_the_catalogue_is_complete() -> None:
    names = [wrong.name for wrong in TABLE]
    assert len(names) == len(set(names)) >= 60
    assert set(names) > SLOW
    assert len(names) - len(SLOW) >= 60
    categories = {name.partition(":")[0] for name in names}
    assert categories == {
        "adapters",
        "chat",
        "inspect",
        "config",
        "data",
        "tokenizers",
        "models",
        "W",
        "caches",
        "checkpoints",
        "devices",
    }


# Tracebacks -----------------------------------------------------------------------------------------------------------

_NEGATIVE = ["fit", "--config", "run.yaml", "--model.teachers.same.alpha", "-1"]


def test_the_traceback_is_there_when_asked_for(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTOKEN_PL_TRACEBACK", "0")  # put back behind the test
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        run(main, [*_NEGATIVE, "--traceback"])
    assert os.environ["XTOKEN_PL_TRACEBACK"] == "1"  # for processes that are started


def fail_with(error: Exception) -> Callable[[Any], None]:
    def main(_: Any) -> None:
        raise error

    return main


@pytest.mark.parametrize("error", [KeyError("key"), AssertionError(), ValueError("of somebody else")])
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        run(fail_with(error))
    assert any("please report it" in note for note in raised.value.__notes__)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_that_is_used_up_is_no_defect(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fail_with(error)) == 1
    assert "lower data.batch_size" in the_message(capsys.readouterr().err)


def test_a_stream_may_end_with_epochs_of_so_many_batches() -> None:
    data = DistillDataModule(TextSource(path="x.jsonl"), streaming=True)
    trainer = pl.Trainer(max_epochs=2, limit_train_batches=3, logger=False, enable_checkpointing=False)
    check_fit(trainer, pl.LightningModule(), data)
    endless = pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="a stream has no epochs"):
        check_fit(endless, pl.LightningModule(), data)


def test_a_call_that_fails_in_our_code_is_a_defect(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of ours, but no statement of ours that raises."""
    monkeypatch.setattr("xtoken_pl.cli.command_line.choose_verb", lambda *_: int("no number"))
    with pytest.raises(ValueError, match="no number"):
        run(main, ["fit"])


def test_an_interrupt_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    assert run(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


class Failing(torch.utils.data.Dataset[int]):
    """Fails in the worker that reads it: by a statement of ours, or by somebody else's."""

    def __init__(self, *, by_us: bool) -> None:
        self.by_us = by_us

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> int:
        return Teacher(model="any", temperature=0) if self.by_us else int("no number")


def test_an_error_in_a_worker_is_said_as_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda _: list(DataLoader(Failing(by_us=True), num_workers=1))) == 1
    message = the_message(capsys.readouterr().err)
    assert message == "temperature must be > 0, got 0; 1 leaves the distributions as they are"
    with pytest.raises(ValueError, match="Original Traceback"):
        run(lambda _: list(DataLoader(Failing(by_us=False), num_workers=1)))


# Where no shortening is possible --------------------------------------------------------------------------------------


def test_what_cannot_be_shortened_is_shown_whole() -> None:
    assert explain(None, "the parser's own words", ["fit"]) == "the parser's own words"


def test_configs_that_were_merged_are_named(inside: Path) -> None:
    """The file that set a value is named, not the one that it was merged into."""
    Path("extra.yaml").write_text(yaml.safe_dump({"trainer": {"max_steps": "ten"}}))
    given = Given.of(["--config", "run.yaml", "--config", "extra.yaml", "--data.batch_size", "4"], ["data"])
    assert given.tree == merge(CONFIG, {"trainer": {"max_steps": "ten"}, "data": {"batch_size": 4}})
    assert given.name(("trainer", "max_steps")) == "trainer.max_steps in extra.yaml"
    assert given.name(("trainer", "logger")) == "trainer.logger in run.yaml"
    assert given.name(("data", "batch_size")) == "--data.batch_size"


# As real processes ----------------------------------------------------------------------------------------------------


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xtoken_pl", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_a_process_ends_with_the_message_and_its_code(inside: Path) -> None:
    done = in_a_process("fit", "--config", "run.yaml", "--trainer.max_steps", "ten")
    assert done.returncode == 2
    assert the_message(done.stderr) == "--trainer.max_steps must be a whole number, got 'ten'"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_process_shows_the_traceback_when_asked(inside: Path) -> None:
    done = in_a_process("--traceback", "audit", "--student", "no", "--teacher", "split")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "a tokenizer must be a folder" in done.stderr


@pytest.mark.slow
def test_two_processes_say_it_each_for_themselves(inside: Path) -> None:
    """What both find ends both; the second one may say it, too, and which it is."""
    done = in_a_process("fit", "--config", "run.yaml", "--trainer.devices", "2", "--model.student.model", "small_head")
    assert done.returncode == 1
    assert "a row for every token" in the_message(done.stderr)
    assert "Traceback" not in done.stderr
