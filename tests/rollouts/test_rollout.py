"""Rollouts of generated ids: where they end, and their bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_writers import EOS, letters
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.rollouts import Rollout
from xtoken_pl.utilities.errors import UserError


@pytest.mark.parametrize(
    ("ids", "stop_ids", "expected"),
    [
        ([], {EOS}, Rollout((), b"", "length")),
        ([EOS], {EOS}, Rollout((EOS,), b"", "stop")),
        ([EOS, 1, 2], {EOS}, Rollout((EOS,), b"", "stop")),
        ([1, 4, EOS, 2, EOS], {EOS}, Rollout((1, 4, EOS), b"ac", "stop")),
        ([1, 4, 2], {EOS}, Rollout((1, 4, 2), b"acb", "length")),
        ([1, EOS, 4], set(), Rollout((1, EOS, 4), b"ac", "length")),  # a special token in a text
        ([1, 4, 2], {4, EOS}, Rollout((1, 4), b"a", "stop")),  # a stop token with bytes
    ],
)
def test_a_rollout_ends_with_its_first_stop_token(ids: list[int], stop_ids: set[int], expected: Rollout) -> None:
    assert Rollout.from_ids(ids, letters(), stop_ids) == expected


def test_half_a_character_is_kept_as_bytes(llama3: PreTrainedTokenizerFast) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(llama3)
    first = vocabulary.token_bytes.index("é".encode()[:1])
    rollout = Rollout.from_ids([first, vocabulary.roles["eos"]], vocabulary, {vocabulary.roles["eos"]})
    assert rollout.text == b"\xc3"
    assert rollout.ended == "stop"


@given(data=st.data())
def test_the_bytes_are_those_of_all_tokens_but_the_stop_token(
    data: st.DataObject, llama3: PreTrainedTokenizerFast, llama2_style: PreTrainedTokenizerFast
) -> None:
    vocabulary = CanonicalVocabulary.from_tokenizer(data.draw(st.sampled_from([llama3, llama2_style])))
    token = st.sampled_from(np.flatnonzero(vocabulary.exists).tolist())
    ids, stop_ids = data.draw(st.lists(token)), data.draw(st.frozensets(token, max_size=3))
    ids = [*ids, *data.draw(st.lists(st.sampled_from(sorted(stop_ids) or [0]), max_size=2))]
    rollout = Rollout.from_ids(ids, vocabulary, stop_ids)
    text = [token for token in rollout.ids if token not in stop_ids]
    assert rollout.text == b"".join(vocabulary.token_bytes[token] for token in text)
    assert rollout.ids == tuple(ids[: len(rollout.ids)])
    assert (rollout.ended == "stop") == bool(stop_ids & set(ids))
    assert len(text) == len(rollout.ids) - (rollout.ended == "stop")


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(UserError, match=r"token ids must be in \[0, 6\)"):
        Rollout.from_ids([1, 6], letters(), {EOS})
