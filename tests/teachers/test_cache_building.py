"""Building a cache: its size, going on after a kill, what is verified and refused; the verb."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from logged import scalars
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from transformers import LlamaForCausalLM

from xtoken_pl.cli import main
from xtoken_pl.teachers.cache.lock import LOCK_FILE, building
from xtoken_pl.teachers.cache.manifest import Manifest
from xtoken_pl.utilities.errors import UserError

CONFIG = """
seed_everything: 1
model:
  student: {model: student}
  teachers:
    split: {model: split, cache: stored, loss: xtoken_pl.ProjectionKL}
    same: {model: same, loss: xtoken_pl.TokenKL}
data:
  train: {path: train.txt}
  val: {path: val.txt}
  sequence_length: 48
  batch_size: 2
  num_workers: 2
trainer:
  accelerator: gpu
  devices: 8
  max_steps: 3
  val_check_interval: 3
  limit_val_batches: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_checkpointing: false
  enable_model_summary: false
  logger: {class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: cached}}
  callbacks: [{class_path: xtoken_pl.callbacks.TeacherMonitor}]
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("building")
    write_model(root / "student", packing_tokenizer(), seed=1)
    write_model(root / "split", splitting_tokenizer(), seed=2)
    write_model(root / "same", packing_tokenizer(), seed=3)
    (root / "train.txt").write_text("\n".join(TEXTS[:2]))
    (root / "val.txt").write_text(TEXTS[5][:1000])
    (root / "run.yaml").write_text(CONFIG)
    return root


Build = Callable[..., None]
_VERB = ("cache", "--config", "run.yaml", "--teacher", "split")


@pytest.fixture
def build(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.chdir(workspace)
    return lambda *arguments: main([*_VERB, "--shard_windows", "64", *arguments])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


#: The verb, killed where the fourth shard is written half.
_KILLED_BUILD = """
import os, signal, sys
from xtoken_pl.teachers.cache import shards
from xtoken_pl.cli import main

save_file, written = shards.save_file, []

def save_or_be_killed(tensors, path):
    save_file(tensors, path)
    written.append(path)
    if len(written) == 4:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

shards.save_file = save_or_be_killed
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_build_killed_inside_a_write_goes_on_and_gives_the_same_bytes(workspace: Path, build: Build) -> None:
    small = ("--shard_windows", "4")
    build("--output", "whole", *small)
    command = [sys.executable, "-c", _KILLED_BUILD, *_VERB, *small, "--output", "killed"]
    process = subprocess.run(
        command, cwd=workspace, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert process.returncode == -signal.SIGKILL
    [half] = (workspace / "killed").glob(".train-000003.safetensors.*/train-000003.safetensors")
    assert 0 < half.stat().st_size < (workspace / "whole/train-000003.safetensors").stat().st_size
    (workspace / "killed/.manifest.json.k1ll_ed0").mkdir()  # as a kill inside a write of the manifest leaves behind
    assert len(Manifest.load(workspace / "killed").entries) == 3
    inode = (workspace / "killed/train-000000.safetensors").stat().st_ino
    build("--output", "killed", *small)
    assert content(workspace / "killed") == content(workspace / "whole")
    assert (workspace / "killed/train-000000.safetensors").stat().st_ino == inode  # it was not made again


def test_a_finished_cache_is_verified_and_a_damaged_shard_made_anew(
    workspace: Path, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    build("--output", "verified")
    written = content(workspace / "verified")
    build("--output", "verified")
    num_shards = sum(name.endswith(".safetensors") for name in written)
    assert f"all {num_shards} shards are unchanged" in capsys.readouterr().out
    path = workspace / "verified/train-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (workspace / "verified/val-000000.safetensors").unlink()
    build("--output", "verified")
    assert content(workspace / "verified") == written
    said = capsys.readouterr().out
    assert "train-000001.safetensors is damaged: it will be rebuilt" in said
    assert "val-000000.safetensors is missing: it will be rebuilt" in said


def test_other_settings_are_refused_unless_the_cache_may_be_overwritten(workspace: Path, build: Build) -> None:
    build("--output", "settings", "--top_k", "8")
    with pytest.raises(UserError, match=r"other settings: top_k is 8 in the cache, 16 in this run.* overwrite"):
        build("--output", "settings", "--top_k", "16")
    assert Manifest.load(workspace / "settings").identity.top_k == 8
    build("--output", "settings", "--top_k", "16", "--overwrite", "true")
    assert Manifest.load(workspace / "settings").identity.top_k == 16
    (workspace / "killed_first/.manifest.json.k1ll_ed0").mkdir(parents=True)
    build("--output", "killed_first", "--top_k", "8")
    with pytest.raises(UserError, match="new or empty directory"):
        build("--output", ".", "--overwrite", "true")
    assert not (workspace / LOCK_FILE).exists()


def test_a_kill_while_a_cache_is_overwritten_leaves_none_of_its_shards_beside_the_new_manifest(
    workspace: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("--output", "replaced", "--top_k", "8")

    def be_killed(manifest: Manifest, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "save", be_killed)
        with pytest.raises(KeyboardInterrupt):
            build("--output", "replaced", "--shard_windows", "100", "--overwrite", "true")
    assert not list((workspace / "replaced").glob("*.safetensors"))
    with pytest.raises(UserError, match="other settings"):
        build("--output", "replaced", "--shard_windows", "100")


def test_a_second_builder_of_a_folder_is_refused_and_nothing_of_the_first_is_touched(
    workspace: Path, build: Build
) -> None:
    folder = workspace / "contended"
    half = folder / ".train-000000.safetensors.l1ve_000"
    with building(folder):
        half.mkdir()
        with pytest.raises(UserError, match=r"one process builds .* another one is building contended"):
            build("--output", "contended")
        assert half.is_dir()
    build("--output", "contended")
    assert not half.exists()
    half.write_text("not a folder of ours")
    build("--output", "contended")
    assert half.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "nobody"], "teacher must be one of split, same, got 'nobody'"),
        (["--teacher", "same"], "give --output, or set `cache` of teacher 'same'"),
        (["--top_k", "500"], "less than the teacher's 500 tokens, got 500; 'all' stores"),
        (["--precision", "8"], "precision must be 16 or 32 bits, got 8"),
        (["--batch_size", "0"], "batch_size must be >= 1, got 0"),
        (["--data.streaming", "true"], "set data.streaming to false"),
    ],
)
def test_options_that_make_no_cache_are_refused(build: Build, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("--output", "refused", *arguments) if arguments[1] != "same" else main([*_VERB, *arguments])
    assert not Path("refused").exists()


def test_the_verb_needs_no_device_and_fit_reads_what_it_stored(workspace: Path, build: Build) -> None:
    build()  # to the teacher's `cache`; the configuration's 8 GPUs are not there
    (workspace / "split/model.safetensors").rename(workspace / "split/elsewhere")
    try:
        main(["fit", "--config", "run.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", "1"])
    finally:
        (workspace / "split/elsewhere").rename(workspace / "split/model.safetensors")
    tags = scalars(workspace / "runs/cached/version_0")
    assert len(tags["train/kd/split"]) == 3
    assert {"val/kd/split", "val/top1_agreement/split", "val/kd/same"} <= tags.keys()
    manifest = Manifest.load(workspace / "stored")
    manifest.shards["train"].pop()
    manifest.save(workspace / "stored")
    with pytest.raises(ValueError, match="a cache must be finished"):
        main(["fit", "--config", "run.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", "1"])


@pytest.mark.parametrize("options", [(), ("--rows", "all")])
def test_the_verb_stores_what_the_configured_loss_reads(
    workspace: Path, build: Build, tmp_path: Path, options: tuple[str, ...]
) -> None:
    loss = ("--model.teachers.split.loss", "xtoken_pl.BytePrefixKL" if not options else "xtoken_pl.ProjectionKL")
    build("--output", str(tmp_path / "cache"), "--top_k", "8", *loss, *options)
    assert Manifest.load(tmp_path / "cache").identity.rows == "all"
    device = ("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger.init_args.save_dir")
    main(["fit", "--config", "run.yaml", "--model.teachers.split.cache", str(tmp_path / "cache"), *loss, *device,
          str(tmp_path)])  # fmt: skip
    losses = scalars(tmp_path / "cached/version_0")["train/kd/split"]
    assert len(losses) == 3


@pytest.mark.parametrize("precision", ["16", "32"])
@pytest.mark.parametrize("top_k", ["8", "all"])
def test_log_probs_that_are_no_numbers_are_never_stored(
    workspace: Path, build: Build, top_k: str, precision: str
) -> None:
    make_overflowing(workspace / "overflowing", "^")  # which the text has once, late
    folder = f"overflowing_{top_k}_{precision}"
    arguments = ("--output", folder, "--top_k", top_k, "--precision", precision, "--model.teachers.split.model")
    with pytest.raises(UserError, match=r"teacher 'split' are not in windows \d+ to \d+ of train.*bfloat16"):
        build(*arguments, "overflowing", "--model.teachers.split.dtype", "float16")
    kept = Manifest.load(workspace / folder).entries
    assert 0 < len(kept) == len(list((workspace / folder).glob("*.safetensors")))


def make_overflowing(folder: Path, token: str) -> None:
    """A teacher whose states are no numbers in float16 once it has read a token."""
    tokenizer = splitting_tokenizer()
    write_model(folder, tokenizer, seed=2)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(token)] = torch.finfo(torch.float16).max
        model.model.layers[0].mlp.down_proj.weight.mul_(1e5)  # adds enough to exceed it
    model.save_pretrained(folder)
