"""The construction of W against slow references."""

from collections.abc import Callable
from itertools import groupby, pairwise

import pytest
from projections import Built
from reference import projection_rows
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast


def test_exact_rows_are_the_tokens_of_equal_bytes(llama3_from_qwen3: Built) -> None:
    teacher_ids: dict[bytes, int] = {}
    for ident, text in enumerate(llama3_from_qwen3.teacher.token_bytes):
        teacher_ids.setdefault(text, ident)
    projection, rows = llama3_from_qwen3.projection, llama3_from_qwen3.rows()
    for s, text in enumerate(llama3_from_qwen3.student.token_bytes):
        if text:
            assert bool(projection.is_exact[s]) == (text in teacher_ids)
            if text in teacher_ids:
                assert rows[s] == {teacher_ids[text]: 1.0}


def lowest_rank_merges(text: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding by definition: repeatedly merges the neighbours whose union has the lowest rank."""
    parts = [bytes([byte]) for byte in text]
    while True:
        unions = [(ranks[left + right], k) for k, (left, right) in enumerate(pairwise(parts)) if left + right in ranks]
        if not unions:
            return [ranks[part] for part in parts]
        _, k = min(unions)
        parts[k : k + 2] = [parts[k] + parts[k + 1]]


def is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_all_other_rows_of_a_real_pair_agree_with_the_reference(
    llama3_from_qwen3: Built, qwen3: PreTrainedTokenizerFast
) -> None:
    """Tokens that are text are encoded as text by the teacher; the others by merging bytes."""
    built = llama3_from_qwen3
    others = [s for s, text in enumerate(built.student.token_bytes) if text and not built.projection.is_exact[s]]
    tokens = [built.student.token_bytes[s] for s in others]
    texts = [token for token in tokens if is_text(token)]
    written = dict(zip(texts, built.teacher.encode([text.decode() for text in texts]), strict=True))
    ranks = {token: ident for ident, token in enumerate(built.teacher.token_bytes[:151_643])}
    written |= {token: lowest_rank_merges(token, ranks) for token in tokens if token not in written}
    expected = projection_rows(tokens, [], written.get, {}, {})
    rows = built.rows()
    assert len(expected) > 17_000
    for place, s in enumerate(others):
        assert rows.get(s, {}) == pytest.approx(expected.get(place, {}), rel=1e-6)


def test_parts_of_characters_are_written_by_bytes(llama3_from_qwen3: Built) -> None:
    parts = [text for text in llama3_from_qwen3.ids if not is_text(text) and not llama3_from_qwen3.num_exact([text])]
    assert len(parts) == 375
    rows = [llama3_from_qwen3.row(text) for text in parts]
    assert all(rows), "none of them needs more than four tokens"
    # A row names its tokens from the heaviest on, in the order of the text, unless one of them comes twice.
    in_order = {text for text, row in zip(parts, rows, strict=True) if b"".join(row) == text}
    assert {*parts} - in_order == {b"\x94\x94", b"\xac\xac", b"\xdb\xb1\xdb", b"\xe0\xa5\xa7\xe0\xa5"}
    assert llama3_from_qwen3.row(b"\xac\xac") == {b"\xac": 1.0}


def writes_bytes(built: Built) -> Callable[[bytes], list[int] | None]:
    """Encoder of bytes inside a text by a small pair's teacher; it returns None if a byte has no token."""
    backend = Tokenizer.from_str(built.teacher.tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    if built.teacher.components.kind == "metaspace":
        backend.normalizer = normalizers.Replace(" ", "▁")  # without the dummy prefix

    def encode(token: bytes) -> list[int] | None:
        ids: list[int] = []
        # Bytes that are no part of a whole character become lone surrogates.
        for is_byte, group in groupby(token.decode(errors="surrogateescape"), key=lambda c: "\udc80" <= c <= "\udcff"):
            characters = "".join(group)
            if is_byte:
                pieces = [backend.token_to_id(f"<0x{ord(character) - 0xDC00:02X}>") for character in characters]
                if None in pieces:
                    return None
                ids += pieces
            else:
                ids += backend.encode(characters, add_special_tokens=False).ids
        is_whole = b"".join(built.teacher.token_bytes[ident] for ident in ids) == token
        return ids if is_whole else None

    return encode


def test_whole_small_vocabularies_agree_with_the_reference(small_pair: Built) -> None:
    spelled = {
        text
        for text, is_piece in zip(small_pair.teacher.token_bytes, small_pair.teacher.is_byte_piece, strict=True)
        if not is_piece
    }
    teacher_tokens = [
        # On a tie a byte piece gives way to the piece that spells its byte: the reference must not see it.
        None if not text or (is_piece and text in spelled) else text
        for text, is_piece in zip(small_pair.teacher.token_bytes, small_pair.teacher.is_byte_piece, strict=True)
    ]
    expected = projection_rows(
        [text or None for text in small_pair.student.token_bytes],
        teacher_tokens,
        writes_bytes(small_pair),
        {1: "bos", 2: "eos"},
        {1: "bos", 2: "eos"},
    )
    found = small_pair.rows()
    assert found.keys() == expected.keys()
    for s, row in expected.items():
        assert found[s] == pytest.approx(row, rel=1e-6), small_pair.student.token_bytes[s]
    assert any(len(row) == 4 for row in expected.values())
    assert len(expected) < 2000, "some rows are zero"


def test_a_spelled_token_is_preferred_to_a_byte_piece(
    smollm2_first_2000: PreTrainedTokenizerFast, llama2_style: PreTrainedTokenizerFast
) -> None:
    rows = Built(smollm2_first_2000, llama2_style).rows()
    letter, byte_piece, spelled = (
        smollm2_first_2000.convert_tokens_to_ids("A"),
        llama2_style.convert_tokens_to_ids("<0x41>"),
        llama2_style.convert_tokens_to_ids("A"),
    )
    assert byte_piece < spelled
    assert rows[letter] == {spelled: 1.0}
    newline = smollm2_first_2000.convert_tokens_to_ids("Ċ")
    assert rows[newline] == {llama2_style.convert_tokens_to_ids("<0x0A>"): 1.0}, "which nothing else spells"


def test_the_lowest_id_is_taken_of_teacher_tokens_with_equal_bytes(
    llama2_style: PreTrainedTokenizerFast, smollm2_first_2000: PreTrainedTokenizerFast
) -> None:
    backend = Tokenizer.from_str(smollm2_first_2000.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken(" the", special=False, normalized=False)])
    built = Built(llama2_style, PreTrainedTokenizerFast(tokenizer_object=backend))
    lowest = smollm2_first_2000.convert_tokens_to_ids("Ġthe")
    assert [ident for ident, text in enumerate(built.teacher.token_bytes) if text == b" the"] == [lowest, 2000]
    assert built.rows()[built.ids[b" the"]] == {lowest: 1.0}


def test_a_token_with_bytes_that_the_teacher_lacks_has_a_zero_row(smollm2_first_2000: PreTrainedTokenizerFast) -> None:
    """SmolLM2 has no token for the byte 4: it encodes `in\\x04the` as `in` and `the`, without a warning."""
    backend = Tokenizer.from_str(smollm2_first_2000.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken("in\x04the", special=False), AddedToken("in\x03the", special=False)])
    built = Built(PreTrainedTokenizerFast(tokenizer_object=backend), smollm2_first_2000)
    assert built.row(b"in\x04the") == {}
    assert b"".join(built.row(b"in\x03the")) == b"in\x03the"


@pytest.mark.parametrize("name", ["llama3", "qwen3", "smollm2"])
def test_the_same_tokenizer_gives_the_identity(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(name)
    built = Built(tokenizer, tokenizer)
    has_match = built.student.num_bytes > 0
    has_match[[*built.student.roles.values()]] = True
    assert built.rows() == {s: {s: 1.0} for s in range(len(built.student)) if has_match[s]}
    assert built.projection.counts.exact == has_match.sum()
    assert built.projection.counts.multi_token == 0


def test_counts_are_of_exact_multi_token_and_zero_rows(small_pair: Built) -> None:
    counts, rows = small_pair.projection.counts, small_pair.rows()
    assert counts.exact == int(small_pair.projection.is_exact.sum())
    assert counts.exact + counts.multi_token == len(rows)
    assert counts.exact + counts.multi_token + counts.zero == 2000
    assert min(counts.exact, counts.multi_token, counts.zero) > 0


def test_rows_do_not_depend_on_what_the_teachers_tokenizer_was_used_for(
    smollm2_first_2000: PreTrainedTokenizerFast,
) -> None:
    """A student's ordinary token may spell a special token of the teacher, as Gemma's `</s>` spells Mistral's."""

    def with_token(*, special: bool) -> PreTrainedTokenizerFast:
        backend = Tokenizer.from_str(smollm2_first_2000.backend_tokenizer.to_str())
        backend.add_tokens([AddedToken("</s>", special=special, normalized=False)])
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")

    student, teacher = with_token(special=False), with_token(special=True)
    before = Built(student, teacher).row(b"</s>")
    assert b"".join(before) == b"</s>"
    teacher("a text")
    assert Built(student, teacher).row(b"</s>") == before
