"""A run of TRL's GOLD trainer, in an environment of its own: ``make peers`` installs it into .venv-peers.

    .venv-peers/bin/python -m benchmarks.peers.trl_run --job ... --run trl_uld --steps 11 --output ...

The windows come tokenized, so that student and teacher read the tokens of the other runs: TRL itself would put no bos
before a text, and an eos behind every window. Byte offsets, teacher inputs and alignment are TRL's.
"""

from __future__ import annotations

import json
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl.experimental.gold import GOLDConfig, GOLDTrainer
from trl.experimental.utils import encode_with_byte_offsets, piece_byte_len

from benchmarks.peers.recording import Recorder, run_arguments
from benchmarks.peers.runs import RUNS, Run


class WindowTrainer(GOLDTrainer):
    """GOLDTrainer on windows that are tokenized, in their order.

    Attributes:
        num_tokens: Student tokens of every batch that the loss has read, padding not included.
    """

    num_tokens: list[int]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Counts the tokens of a batch."""
        self.num_tokens.append(int(inputs["attention_mask"].sum()))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if dataset is None else dataset)


class RecordSteps(TrainerCallback):
    """Passes the beginning of training and the end of every step to a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts measuring when the models are loaded."""
        self.recorder.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends a step."""
        self.recorder.end_step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Takes the loss of a step from the log."""
        if logs and "loss" in logs:
            self.recorder.losses.append(float(logs["loss"]))


class RecordGroups:
    """Records which tokens a trainer's loss compares.

    Attributes:
        windows: For each window ``student_ids``, ``teacher_ids``, and ``groups`` as positions in these.
    """

    def __init__(self, loss: Any) -> None:
        self.windows: list[dict[str, Any]] = []
        self._merged: list[tuple[list[list[int]], list[int]]] = []
        self._compute, self._merge = loss._compute_distillation_loss, loss._merge_probabilities_with_alignment_groups
        loss._compute_distillation_loss = self.compute
        loss._merge_probabilities_with_alignment_groups = self.merge

    def merge(self, probs: Any, groups: list[list[int]], token_ids: list[int]) -> Any:
        """Records the groups of one side of a window, and its tokens."""
        self._merged.append((groups, token_ids))
        return self._merge(probs, groups, token_ids)

    def compute(
        self,
        student_logits: Any,
        teacher_logits: Any,
        student_labels: Any,
        teacher_labels: Any,
        student_input_ids: Any,
        teacher_input_ids: Any,
        **more: Any,
    ) -> Any:
        """Records the windows of a batch."""
        self._merged.clear()
        inputs = student_labels, teacher_labels, student_input_ids, teacher_input_ids
        result = self._compute(student_logits, teacher_logits, *inputs, **more)
        assert len(self._merged) == 2 * len(student_labels), "TRL merges both sides of every window"
        for place in range(len(student_labels)):
            ids = [
                tokens[place][labels[place] != -100].tolist()
                for tokens, labels in ((student_input_ids, student_labels), (teacher_input_ids, teacher_labels))
            ]
            sides = [
                _in_window(*merged, own)
                for merged, own in zip(self._merged[2 * place : 2 * place + 2], ids, strict=True)
            ]
            groups = list(zip(*sides, strict=True))
            self.windows.append({"student_ids": ids[0], "teacher_ids": ids[1], "groups": groups})
        return result


def _in_window(groups: list[list[int]], part: list[int], whole: list[int]) -> list[list[int]]:
    """Positions in a window, given those in the part of it that TRL compares."""
    start = next(place for place in range(len(whole)) if whole[place : place + len(part)] == part)
    return [[start + position for position in group] for group in groups]


def dataset(windows: Path, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Returns the windows as rows like those that TRL's preparation makes.

    Byte offsets are those of TRL: of the window's text, or where the student has other tokens at the beginning of that
    text by itself, by the lengths of the tokens, as for a text that a student writes.

    Args:
        windows: ``windows.jsonl`` of the job.
        tokenizer: The student's tokenizer.
    """
    rows = []
    for window in map(json.loads, windows.read_text().splitlines()):
        inner = window["ids"][1 : len(window["ids"]) - window["is_end"]]  # without bos and eos
        [(ids, offsets)] = encode_with_byte_offsets(tokenizer.backend_tokenizer, [window["text"]])
        if ids != inner:
            ends = list(accumulate(map(piece_byte_len, tokenizer.convert_ids_to_tokens(inner))))
            offsets = list(zip([0, *ends], ends, strict=False))
        end = len(window["text"].encode())
        row = {
            "input_ids": window["ids"],
            "attention_mask": [1] * len(window["ids"]),
            "byte_offsets": [(0, 0), *offsets, *[(end, end)] * window["is_end"]],
            "completion_mask": [0] + [1] * (len(window["ids"]) - 1),
        }
        rows.append({**row, "original_prompt_text": "", "original_completion_text": window["text"]})
    return Dataset.from_list(rows)


def config(run: Run, job: dict[str, Any], num_steps: int, folder: str) -> GOLDConfig:
    """Returns the options: the recipe of the job, and its losses as this package defines them."""
    return GOLDConfig(
        output_dir=folder,
        max_steps=num_steps,
        per_device_train_batch_size=job["batch_size"],
        learning_rate=job["learning_rate"],
        weight_decay=job["weight_decay"],
        adam_beta1=job["betas"][0],
        adam_beta2=job["betas"][1],
        max_grad_norm=job["clip"],
        optim="adamw_torch",
        lr_scheduler_type="cosine",
        warmup_steps=round(num_steps * job["warmup_fraction"]),
        seed=job["seed"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        lmbda=0.0,  # the data, nothing that the student writes
        use_uld_loss=True,
        uld_use_hybrid_loss=run.loss == "hybrid",
        uld_token_merge_strategy=run.merge,
        uld_crossentropy_weight=1.0,
        uld_distillation_weight=1.0,
        uld_hybrid_matched_weight=1.0,
        uld_hybrid_unmatched_weight=1.0,
        beta=0.0,  # the teacher's KL, as in this package
        uld_skip_student_eos=False,  # most windows end inside a text, with a token to learn from
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def main() -> None:
    """Trains, and writes the record, the student and the groups."""
    arguments = run_arguments(__doc__)
    run, job = RUNS[arguments.run], json.loads((arguments.job / "job.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(job["student"])
    rows = dataset(arguments.job / "windows.jsonl", tokenizer)
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        trainer = WindowTrainer(
            model=AutoModelForCausalLM.from_pretrained(job["student"], dtype=torch.float32),
            teacher_model=AutoModelForCausalLM.from_pretrained(job["teacher"], dtype=torch.float32),
            args=config(run, job, arguments.steps, folder),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[RecordSteps(recorder)],
        )
        trainer.num_tokens = recorder.num_tokens
        groups = None if arguments.groups is None else RecordGroups(trainer.uld_loss_fn)
        trainer.train()
    recorder.write(arguments.output, torch.get_num_threads(), "torch", "transformers", "trl")
    if groups is not None:
        arguments.groups.write_text(json.dumps(groups.windows))
    if arguments.student is not None:
        trainer.model.save_pretrained(arguments.student)


if __name__ == "__main__":
    main()
