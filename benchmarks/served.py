"""What a served teacher costs, and how far its answers are from the teacher here: ``python -m benchmarks.served``.

Needs a running vLLM server of the quickstart's teacher on this machine, whose address without ``/v1`` is in the
environment's ``XTOKEN_PL_SERVER``; see README.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import requests
import torch
from torch import Tensor

from benchmarks.measure import Figure, ratios, run, seconds
from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, ProjectionKL, Server, Student, Teacher, TextSource
from xtoken_pl.batch import AllRows, TokenBatch
from xtoken_pl.batch.quantization import floats_of
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.teachers.served.answers import text_rows
from xtoken_pl.teachers.served.teacher import ServedTeacher, list_questions

_KS = (16, 64, 128)
_LENGTH, _ROUNDS = 256, 3
_URL = os.environ.get("XTOKEN_PL_SERVER", "")


def figures() -> Iterator[Figure]:
    """Time of scoring against the live pass, bytes and reading time of answers, differences of log-probabilities."""
    if not _URL:
        raise SystemExit("set XTOKEN_PL_SERVER to the address of a vLLM server; benchmarks/README.md has its command")
    prepare()
    module = MultiTeacherDistillModule(
        Student(model="quickstart/student", weights="random"),
        {"smollm2": Teacher(model="quickstart/teacher-smollm2", loss=ProjectionKL())},
    )
    batches = _batches(module)
    teacher = module.loaded_teachers["smollm2"].model
    num_rows = sum(len(tokens.rows) for tokens in batches)

    @torch.inference_mode()
    def live() -> list[Tensor]:
        logits = [teacher(tokens.input_ids, attention_mask=tokens.attention_mask).logits for tokens in batches]
        rows = [own.flatten(0, 1)[tokens.rows] for own, tokens in zip(logits, batches, strict=True)]
        return [own.float().log_softmax(-1) for own in rows]

    served = {k: _served(module, k) for k in _KS}
    times = ratios(live, {str(k): lambda k=k: served[k].ask(batches) for k in _KS}, _ROUNDS)  # type: ignore[misc]
    log_probs = live()
    for k, source in served.items():
        label, rows = f"served, k = {k}", source.ask(batches)
        yield Figure(f"{label}: scoring against the live pass", times.ratio(str(k)), note=times.note(str(k)))
        size, taken = _reading(source, batches)
        yield Figure(f"{label}: answer", size / num_rows, "bytes per token")
        yield Figure(f"{label}: reading the answers on one core", 1e6 * taken / num_rows, "s per million tokens")
        differences = torch.cat([_differences(*each) for each in zip(rows, log_probs, strict=True)])
        note = f"mean {differences.mean():.2g}, {len(differences):,} log-probabilities"
        yield Figure(f"{label}: largest difference from the live pass", differences.max().item(), "nats", note=note)


def _batches(module: MultiTeacherDistillModule) -> list[TokenBatch]:
    texts = TextSource(path="quickstart/corpus/val.jsonl", split="train[3:4]")
    data = DistillDataModule(texts, sequence_length=_LENGTH, batch_size=4, num_workers=0)
    data.connect(*module.vocabularies())
    data.setup("fit")
    module.configure_model()
    return [batch.teachers["smollm2"].tokens for batch in data.train_dataloader()]


def _served(module: MultiTeacherDistillModule, top_k: int) -> ServedTeacher:
    server = Server(url=_URL, model="smollm2", top_k=top_k)
    return ServedTeacher("smollm2", server, module.teacher_vocabularies["smollm2"])


def _reading(source: ServedTeacher, batches: list[TokenBatch]) -> tuple[int, float]:
    """Bytes of the answers to all questions, and the seconds that one thread takes to read them."""
    api, exists = source.scorer.api, source.vocabulary.exists
    size, taken = 0, 0.0
    for question in (question for tokens in batches for question in list_questions(tokens, source.top_k)):
        content = requests.post(_URL + api.path, json=api.request(question), timeout=600).content
        size += len(content)
        taken += seconds(lambda: text_rows(api.read(json.loads(content), question), question, exists))  # noqa: B023
    return size, taken


def _differences(known: AllRows, log_probs: Tensor) -> Tensor:
    assert known.top.ids is not None
    expected = log_probs.gather(1, known.top.ids.long())
    return (floats_of(known.top.log_probs) - expected).abs().flatten()


if __name__ == "__main__":
    run(figures)
