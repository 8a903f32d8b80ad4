"""The rows that a server gives are those of the model it runs, in the order of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from served_teachers import Clock, ask, live_log_probs, numbers, served, token_batch
from stand_in_server import StandInServer
from transformers import PreTrainedModel

from xtoken_pl.tokenization import CanonicalVocabulary

_IDS = [[5, 17, 300, 42, 8, 99, 250], [77, 6, 6, 410], [12, 13, 14, 15, 16]]
_ROWS = [[0, 1, 3, 5], [], [2]]


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_the_most_probable_tokens_are_those_of_the_model(
    server: StandInServer, model: PreTrainedModel, vocabulary: CanonicalVocabulary, clock: Clock, api: str
) -> None:
    found = numbers(ask(served(server, vocabulary, clock, api=api, top_k=5), token_batch(_IDS, _ROWS)))
    index = 0
    for ids, rows in zip(_IDS, _ROWS, strict=True):
        for row in rows:
            expected = live_log_probs(model, ids)[row]
            label = ids[row + 1]
            best = expected.topk(5)
            exists = [i < len(vocabulary) and bool(vocabulary.exists[i]) for i in best.indices.tolist()]
            ids_kept = [i if has else len(vocabulary) for i, has in zip(best.indices.tolist(), exists, strict=True)]
            assert found["ids"][index].tolist() == ids_kept
            kept = np.where(exists, best.values.numpy(), -np.inf)
            np.testing.assert_allclose(found["log_probs"][index], kept, atol=1e-5)
            assert found["log_observed"][index] == pytest.approx(float(expected[label]), abs=1e-5)
            known = {*best.indices[torch.tensor(exists)].tolist(), label}
            tail = 1.0 - float(expected.exp()[sorted(known)].sum())
            assert np.exp(found["log_tail"][index]) == pytest.approx(tail, abs=1e-6)
            index += 1
    assert index == len(found["log_observed"])


def test_all_tokens_are_normalized_over_those_of_the_tokenizer(
    server: StandInServer, model: PreTrainedModel, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    found = ask(served(server, vocabulary, clock, top_k="all"), token_batch(_IDS, _ROWS))
    assert found.top.ids is None
    assert found.top.log_tail is None
    holes = torch.ones(520, dtype=torch.bool)
    holes[: len(vocabulary)] = torch.from_numpy(~vocabulary.exists)
    logits = torch.cat([live_log_probs(model, ids)[rows] for ids, rows in zip(_IDS, _ROWS, strict=True)])
    expected = logits.masked_fill(holes, -torch.inf).log_softmax(-1)[:, : len(vocabulary)]
    np.testing.assert_allclose(numbers(found)["log_probs"], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("top_k", [64, "all"])
def test_a_loss_reads_distributions_though_the_server_has_more_ids_than_the_tokenizer(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock, top_k: int | str
) -> None:
    batch = token_batch(_IDS, _ROWS)
    rows = ask(served(server, vocabulary, clock, top_k=top_k), batch)
    if rows.top.ids is not None:
        assert (rows.top.ids == len(vocabulary)).any(), "the server has no such id among the most probable ones"
    dense = rows.dense(batch.labels, torch.from_numpy(~vocabulary.exists), int(vocabulary.exists.sum()))
    np.testing.assert_allclose(dense.double().exp().sum(1).numpy(), 1.0, atol=1e-5)
    np.testing.assert_allclose(dense.gather(1, batch.labels[:, None])[:, 0], numbers(rows)["log_observed"])


def test_each_document_is_asked_for_by_itself_up_to_its_last_row(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    ids = [[1, 2, 3, 10, 11, 12, 13, 20], [30, 31, 32]]
    teacher = served(server, vocabulary, clock)
    ask(teacher, token_batch([[1, 2]], [[0]]))  # with the probe
    server.prompts.clear()
    packed = ask(teacher, token_batch(ids, [[0, 1, 3, 4], [0]], starts=[[0, 3, 7], [0]]))
    assert sorted(server.prompts) == [[1, 2, 3], [10, 11, 12], [30, 31]]
    alone = ask(teacher, token_batch([[1, 2, 3], [10, 11, 12], [30, 31]], [[0, 1], [0, 1], [0]]))
    for name, value in numbers(alone).items():
        np.testing.assert_array_equal(numbers(packed)[name], value)


def test_texts_without_a_row_are_not_asked_for(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    found = ask(served(server, vocabulary, clock), token_batch(_IDS, [[], [], []]))
    assert found.top.log_probs.shape == (0, 8)
    assert found.top.ids is not None
    assert found.top.ids.shape == (0, 8)
    assert len(found.log_observed) == 0
    assert not server.prompts


def test_more_texts_than_concurrent_requests_keep_their_order(
    server: StandInServer, vocabulary: CanonicalVocabulary, clock: Clock
) -> None:
    ids = [[1, 5 + index, 2] for index in range(12)]
    teacher = served(server, vocabulary, clock, concurrency=3)
    together = numbers(ask(teacher, token_batch(ids, [[0, 1]] * 12)))
    for index, text in enumerate(ids):
        for name, value in numbers(ask(teacher, token_batch([text], [[0, 1]]))).items():
            np.testing.assert_array_equal(together[name][2 * index : 2 * index + 2], value)
