"""The projection W: known values on real vocabularies, slow references, algebra, files and refusals."""

import json
import math
import string
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import dense_projection, projection_rows
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, normalizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl.projection import Projection, ProjectionParameters, build_projection
from xtoken_pl.projection.sparse import SparseProduct
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# V_s/V_t vocabulary sizes (student/teacher)


class Built:
    """A projection with its two vocabularies, whose rows can be read by the bytes of the tokens."""

    def __init__(self, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, **parameters: float) -> None:
        self.projection = build_projection(student, teacher, ProjectionParameters(**parameters))
        self.student = CanonicalVocabulary.from_tokenizer(student)
        self.teacher = CanonicalVocabulary.from_tokenizer(teacher)
        self.ids = {text: ident for ident, text in enumerate(self.student.token_bytes) if text}

    def rows(self) -> dict[int, dict[int, float]]:
        """{student id: {teacher id: weight}} without zeros, the form of the reference."""
        listed = zip(self.projection.indices.tolist(), self.projection.weights.tolist(), strict=True)
        rows = ({t: w for t, w in zip(*places, strict=True) if w} for places in listed)
        return {s: row for s, row in enumerate(rows) if row}

    def row(self, text: bytes) -> dict[bytes, float]:
        indices, weights = self.projection.indices[self.ids[text]], self.projection.weights[self.ids[text]]
        named = zip(indices.tolist(), weights.tolist(), strict=True)
        return {self.teacher.token_bytes[t]: w for t, w in named if w}

    def num_exact(self, texts: list[bytes]) -> int:
        assert {*texts} <= self.ids.keys(), "the student must have all these tokens"
        return sum(bool(self.projection.is_exact[self.ids[text]]) for text in texts)


@pytest.fixture(scope="module")
def llama3_from_qwen3(llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast) -> Built:
    return Built(llama3, qwen3)


@pytest.fixture(scope="module")
def llama3_from_o200k(llama3: PreTrainedTokenizerFast, o200k: PreTrainedTokenizerFast) -> Built:
    return Built(llama3, o200k)


@pytest.fixture(
    scope="module",
    params=[("llama2_style", "smollm2_first_2000"), ("smollm2_first_2000", "llama2_style")],
    ids="_from_".join,
)
def small_pair(request: pytest.FixtureRequest) -> Built:
    return Built(*map(request.getfixturevalue, request.param))


# Known values

TWO_DIGITS = [f"{number:02}".encode() for number in range(100)]
THREE_DIGITS = [f"{number:03}".encode() for number in range(1000)]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (b"12", {b"1": 0.9091, b"2": 0.0909}),
        (b"123", {b"1": 0.9009, b"2": 0.0901, b"3": 0.0090}),
        (b"&ZeroWidthSpace", {b"&": 0.9001, b"Zero": 0.0900, b"Width": 0.0090, b"Space": 0.0009}),
        (b" republika", {b" rep": 0.9001, b"ub": 0.0900, b"li": 0.0090, b"ka": 0.0009}),
    ],
)
def test_tokens_of_several_teacher_tokens_have_the_papers_weights(
    llama3_from_qwen3: Built, text: bytes, row: dict[bytes, float]
) -> None:
    assert llama3_from_qwen3.row(text) == pytest.approx(row, abs=1e-4)
    assert llama3_from_qwen3.num_exact([text]) == 0


@pytest.mark.parametrize(
    ("text", "row"),
    [
        (b"11", {b"1": 1.0}),
        (b"112", {b"1": 0.99 / 0.999, b"2": 0.009 / 0.999}),
        (b"122", {b"1": 0.9 / 0.999, b"2": 0.099 / 0.999}),
        (b"121", {b"1": 0.909 / 0.999, b"2": 0.09 / 0.999}),
    ],
)
def test_weights_of_a_repeated_teacher_token_add_up(
    llama3_from_qwen3: Built, text: bytes, row: dict[bytes, float]
) -> None:
    assert llama3_from_qwen3.row(text) == pytest.approx(row, abs=1e-6)
    assert llama3_from_qwen3.num_exact([text]) == 0


def test_a_token_of_more_than_four_teacher_tokens_has_a_zero_row(llama3_from_qwen3: Built) -> None:
    """`.:.:.:.:` is five tokens of Qwen3: `.`, three times `:.` and `:`."""
    assert llama3_from_qwen3.row(b".:.:.:.:") == {}


def test_numerals_are_not_exact_under_a_teacher_that_splits_digits(llama3_from_qwen3: Built) -> None:
    assert llama3_from_qwen3.num_exact(TWO_DIGITS) == 0
    assert llama3_from_qwen3.num_exact(THREE_DIGITS) == 0


def test_numerals_are_exact_under_a_teacher_that_groups_digits_alike(llama3_from_o200k: Built) -> None:
    assert llama3_from_o200k.num_exact(TWO_DIGITS) == 100
    assert llama3_from_o200k.num_exact(THREE_DIGITS) == 1000
    assert all(llama3_from_o200k.row(text) == {text: 1.0} for text in TWO_DIGITS + THREE_DIGITS)


@pytest.mark.parametrize("name", ["llama3_from_qwen3", "llama3_from_o200k"])
def test_digits_and_ascii_punctuation_are_exact(request: pytest.FixtureRequest, name: str) -> None:
    built: Built = request.getfixturevalue(name)
    texts = [character.encode() for character in string.digits + string.punctuation]
    assert built.num_exact(texts) == len(texts) == 42
    assert all(built.row(text) == {text: 1.0} for text in texts)


def test_special_tokens_are_mapped_by_role(llama3_from_qwen3: Built, llama3_from_o200k: Built) -> None:
    """Llama 3's <|begin_of_text|>, <|end_of_text|>, <|start_header_id|> and <|eot_id|>; the others have no role."""
    bos, eos, turn_start, turn_end = 128_000, 128_001, 128_006, 128_009
    special = range(128_000, 128_256)
    rows = llama3_from_qwen3.rows()
    assert {s: rows[s] for s in special if s in rows} == {
        eos: {151_645: 1.0},  # <|im_end|> ends texts and turns; Qwen3 has no bos
        turn_start: {151_644: 1.0},
        turn_end: {151_645: 1.0},
    }
    rows = llama3_from_o200k.rows()
    assert {s: rows[s] for s in special if s in rows} == {bos: {199_999: 1.0}, eos: {199_999: 1.0}}
    assert llama3_from_o200k.projection.is_exact[[bos, eos]].all()


def test_a_token_of_several_roles_is_mapped_by_the_first_that_decides(
    smollm2_first_2000: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast
) -> None:
    """SmolLM2's <|im_end|> ends texts and turns and pads: it is Qwen3's <|im_end|>, not its <|endoftext|>, the pad."""
    rows = Built(smollm2_first_2000, qwen3).rows()
    assert qwen3.pad_token_id < qwen3.eos_token_id
    assert rows[2] == {qwen3.eos_token_id: 1.0}


# Slow references


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
    """Byte-pair encoding by its definition: merge the neighbours whose union has the lowest rank, again and again."""
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
    """Tokens that are text, as the teacher writes the text; the others, byte by byte."""
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
    """How the teacher of a small pair writes bytes inside a text; None where it has no token for some of them."""
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


def test_a_byte_piece_gives_way_to_the_piece_that_spells_its_byte(
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


def test_of_several_teacher_tokens_of_equal_bytes_the_lowest_id_is_taken(
    llama2_style: PreTrainedTokenizerFast, smollm2_first_2000: PreTrainedTokenizerFast
) -> None:
    backend = Tokenizer.from_str(smollm2_first_2000.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken(" the", special=False, normalized=False)])
    built = Built(llama2_style, PreTrainedTokenizerFast(tokenizer_object=backend))
    lowest = smollm2_first_2000.convert_tokens_to_ids("Ġthe")
    assert [ident for ident, text in enumerate(built.teacher.token_bytes) if text == b" the"] == [lowest, 2000]
    assert built.rows()[built.ids[b" the"]] == {lowest: 1.0}


def test_a_token_with_bytes_that_the_teacher_lacks_has_a_zero_row(smollm2_first_2000: PreTrainedTokenizerFast) -> None:
    """SmolLM2 has no token for the byte 4: it writes `in\\x04the` as `in` and `the`, and without a warning."""
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
    assert counts.total == counts.exact + counts.multi_token + counts.zero == 2000
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


# Parameters


def test_beta_cancels_out(small_pair: Built) -> None:
    other = Built(small_pair.student.tokenizer, small_pair.teacher.tokenizer, beta=0.3)
    torch.testing.assert_close(other.projection.weights, small_pair.projection.weights)
    assert other.projection.indices.equal(small_pair.projection.indices)


def test_gamma_is_the_ratio_of_neighbouring_weights(
    llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast
) -> None:
    assert Built(llama3, qwen3, gamma=0.5).row(b"123") == pytest.approx({b"1": 4 / 7, b"2": 2 / 7, b"3": 1 / 7})
    assert Built(llama3, qwen3, gamma=1.0).row(b"123") == pytest.approx({b"1": 1 / 3, b"2": 1 / 3, b"3": 1 / 3})


def test_max_tokens_and_top_limit_a_row(llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast) -> None:
    """`.:.:.:.:` is `.`, three times `:.` and `:`."""
    longer = Built(llama3, qwen3, max_tokens=5)
    total = 0.9 + 0.0999 + 0.00009
    row = {b".": 0.9 / total, b":.": 0.0999 / total, b":": 0.00009 / total}
    assert longer.row(b".:.:.:.:") == pytest.approx(row, rel=1e-5)
    narrow = Built(llama3, qwen3, max_tokens=5, top=2)
    row = {b".": 0.9 / 0.9999, b":.": 0.0999 / 0.9999}
    assert narrow.row(b".:.:.:.:") == pytest.approx(row, rel=1e-5)
    assert narrow.projection.indices.shape == (len(narrow.student), 2)
    assert Built(llama3, qwen3, max_tokens=2).row(b"123") == {}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got 0"),
        ({"beta": -0.9}, "beta must be > 0, got -0.9"),
        ({"beta": math.nan}, "beta must be > 0, got nan"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\], got 0"),
        ({"gamma": 1.5}, r"gamma must be in \(0, 1\], got 1.5"),
        ({"gamma": math.nan}, r"gamma must be in \(0, 1\], got nan"),
        ({"max_tokens": 0}, "max_tokens and top must be >= 1, got 0 and 4"),
        ({"top": 0}, "max_tokens and top must be >= 1, got 4 and 0"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectionParameters(**parameters)


# Application


def sparse(rows: list[dict[int, float]], num_teacher: int) -> Projection:
    """A small projection with the given rows."""
    width = max(1, *map(len, rows))
    padded = torch.tensor([[*row.items(), *[(0, 0.0)] * (width - len(row))] for row in rows], dtype=torch.float64)
    is_exact = torch.tensor([[*row.values()] == [1.0] for row in rows])
    return Projection(padded[..., 0].long(), padded[..., 1].float(), is_exact, num_teacher, "s", "t", {"beta": 0.9})


def dense(projection: Projection) -> Tensor:
    """[V_s, V_t], float64."""
    matrix = torch.zeros(projection.num_student, projection.num_teacher, dtype=torch.float64)
    for s in range(projection.num_student):
        for t, weight in zip(projection.indices[s].tolist(), projection.weights[s].tolist(), strict=True):
            matrix[s, t] += weight
    return matrix


@pytest.fixture
def small() -> Projection:
    return sparse([{0: 1.0}, {2: 0.9, 1: 0.1}, {}, {3: 0.75, 0: 0.25}, {3: 1.0}], num_teacher=6)


@st.composite
def projections(draw: st.DrawFn) -> Projection:
    num_teacher = draw(st.integers(1, 7))
    ids = st.lists(st.integers(0, num_teacher - 1), max_size=4, unique=True)
    rows = []
    for tokens in draw(st.lists(ids, min_size=1, max_size=8)):
        weights = [draw(st.floats(0.01, 1.0)) for _ in tokens]
        rows.append({t: weight / sum(weights) for t, weight in zip(tokens, weights, strict=True)})
    return sparse(rows, num_teacher)


@given(projection=projections(), shape=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 99))
def test_application_is_the_product_with_the_dense_matrix(projection: Projection, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student_rows = torch.randn(*shape, projection.num_student, dtype=torch.float64, generator=generator)
    teacher_rows = torch.randn(*shape, projection.num_teacher, dtype=torch.float64, generator=generator)
    to_teacher, to_student = projection.to_teacher(student_rows), projection.to_student(teacher_rows)
    matrix = dense(projection)
    torch.testing.assert_close(to_teacher, student_rows @ matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_student, teacher_rows @ matrix.T, rtol=1e-12, atol=1e-12)
    # <Wᵀ p, q> = <p, W q>
    torch.testing.assert_close(
        (to_teacher * teacher_rows).sum(), (student_rows * to_student).sum(), rtol=1e-12, atol=1e-12
    )


def test_application_of_a_whole_vocabulary_is_the_product_with_the_dense_matrix(small_pair: Built) -> None:
    generator = torch.Generator().manual_seed(0)
    student_rows, teacher_rows = (torch.rand(2, 3, 2000, dtype=torch.float64, generator=generator) for _ in range(2))
    matrix = dense_projection(small_pair.rows(), 2000, 2000)
    to_teacher, to_student = (
        small_pair.projection.to_teacher(student_rows),
        small_pair.projection.to_student(teacher_rows),
    )
    torch.testing.assert_close(to_teacher, student_rows @ matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_student, teacher_rows @ matrix.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["llama3_from_qwen3", "llama3_from_o200k"])
def test_rows_sum_to_one_or_zero(request: pytest.FixtureRequest, name: str) -> None:
    projection: Projection = request.getfixturevalue(name).projection
    sums = projection.weights.double().sum(dim=1)
    is_zero = sums == 0
    torch.testing.assert_close(sums[~is_zero], torch.ones_like(sums[~is_zero]), rtol=0, atol=1e-6)
    assert int(is_zero.sum()) == projection.counts.zero > 0


@pytest.mark.parametrize("name", ["llama3_from_qwen3", "llama3_from_o200k"])
def test_a_projected_distribution_keeps_its_mass_but_for_the_zero_rows(
    request: pytest.FixtureRequest, name: str
) -> None:
    projection: Projection = request.getfixturevalue(name).projection
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, projection.num_student, dtype=torch.float64, generator=generator)
    probabilities = logits.softmax(dim=-1)
    projected = projection.to_teacher(probabilities)
    lost = probabilities[:, projection.weights.sum(dim=1) == 0].sum(dim=-1)
    assert (projected >= 0).all()
    assert (lost > 1e-4).all()
    torch.testing.assert_close(projected.sum(dim=-1), 1 - lost, rtol=0, atol=1e-7)


def test_the_gradient_of_a_projection_is_right(small: Projection) -> None:
    generator = torch.Generator().manual_seed(0)
    student_rows = torch.rand(2, 2, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher_rows = torch.rand(3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(small.to_teacher, student_rows)
    assert torch.autograd.gradgradcheck(small.to_teacher, student_rows)
    assert torch.autograd.gradcheck(small.to_student, teacher_rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_product_with_its_own_weights_is_that_with_the_same_ones_given(small: Projection, dtype: torch.dtype) -> None:
    student_ids, teacher_ids, weights = small.entries()
    product = SparseProduct(student_ids, teacher_ids, small.num_student, small.num_teacher, weights)
    rows = torch.rand(3, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    own, given = product(rows), product(rows, weights)
    assert own.any()
    assert torch.equal(own, given)
    own_gradient, given_gradient = (torch.autograd.grad(out.square().sum(), rows)[0] for out in (own, given))
    assert torch.equal(own_gradient, given_gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_application_keeps_the_dtype_and_the_leading_shape(small: Projection, dtype: torch.dtype) -> None:
    projected = small.to_teacher(torch.full((2, 1, 5), 0.2, dtype=dtype))
    assert projected.dtype == dtype
    assert projected.shape == (2, 1, 6)
    expected = torch.tensor([0.25, 0.02, 0.18, 0.35, 0.0, 0.0]).expand(2, 1, 6)
    torch.testing.assert_close(projected.float(), expected, rtol=0, atol=5e-3 if dtype == torch.bfloat16 else 1e-6)


def test_rows_of_another_vocabulary_are_refused(small: Projection) -> None:
    with pytest.raises(ValueError, match="must have 5 columns to be projected, got 6"):
        small.to_teacher(torch.ones(2, 6))
    with pytest.raises(ValueError, match="must have 6 columns to be projected, got 5"):
        small.to_student(torch.ones(2, 5))


def test_entries_are_the_nonzero_weights(small: Projection) -> None:
    entries = {(s, t): w for s, t, w in zip(*(part.tolist() for part in small.entries()), strict=True)}
    expected = {(0, 0): 1.0, (1, 2): 0.9, (1, 1): 0.1, (3, 3): 0.75, (3, 0): 0.25, (4, 3): 1.0}
    assert entries == pytest.approx(expected)


# Files


def test_a_saved_projection_comes_back_whole(small_pair: Built, tmp_path: Path) -> None:
    before, path = small_pair.projection, tmp_path / "new folder" / "w.safetensors"
    before.save(path)
    after = Projection.load(path)
    for name in ("indices", "weights", "is_exact"):
        assert getattr(after, name).equal(getattr(before, name)), name
        assert getattr(after, name).dtype == getattr(before, name).dtype, name
    assert after.num_teacher == before.num_teacher == 2000
    assert after.student_fingerprint == small_pair.student.fingerprint
    assert after.teacher_fingerprint == small_pair.teacher.fingerprint
    assert after.parameters == before.parameters == {"beta": 0.9, "gamma": 0.1, "max_tokens": 4, "top": 4}
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"], "nothing is left beside it"
    after.check_belongs_to(small_pair.student, small_pair.teacher)


def test_a_file_is_not_overwritten_unasked(small: Projection, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    small.save(path)
    content = path.read_bytes()
    other = sparse([{0: 1.0}], num_teacher=1)
    with pytest.raises(UserError, match=r"w\.safetensors exists"):
        other.save(path)
    assert path.read_bytes() == content
    other.save(path, overwrite=True)
    assert Projection.load(path).num_student == 1


def test_a_projection_for_other_tokenizers_is_refused_with_the_side(
    small_pair: Built, wordless: CanonicalVocabulary, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    small_pair.projection.save(path)
    loaded = Projection.load(path)
    with pytest.raises(ValueError, match=rf"its student tokenizer has 2000 tokens.*{wordless.fingerprint}"):
        loaded.check_belongs_to(wordless, small_pair.teacher)
    with pytest.raises(ValueError, match=rf"its teacher tokenizer has 2000 tokens.*{wordless.fingerprint}"):
        loaded.check_belongs_to(small_pair.student, wordless)
    with pytest.raises(ValueError, match="its student tokenizer"):
        loaded.check_belongs_to(small_pair.teacher, small_pair.student)


@pytest.fixture(scope="module")
def wordless(smollm2_first_2000: PreTrainedTokenizerFast) -> CanonicalVocabulary:
    """The same 2,000 tokens without their merges: only the way a text is cut differs."""
    state = json.loads(smollm2_first_2000.backend_tokenizer.to_str())
    state["model"]["merges"] = []
    backend = Tokenizer.from_str(json.dumps(state))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def test_a_projection_of_another_size_is_refused_with_the_side(small_pair: Built) -> None:
    projection = small_pair.projection
    shorter = replace(
        projection,
        indices=projection.indices[:-1],
        weights=projection.weights[:-1],
        is_exact=projection.is_exact[:-1],
    )
    with pytest.raises(ValueError, match="its student tokenizer has 1999 tokens"):
        shorter.check_belongs_to(small_pair.student, small_pair.teacher)
    with pytest.raises(ValueError, match="its teacher tokenizer has 2001 tokens"):
        replace(projection, num_teacher=2001).check_belongs_to(small_pair.student, small_pair.teacher)


def set_weight(value: float) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["weights"][1, 0] = value

    return spoil


def set_index(value: int) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["indices"][1, 0] = value

    return spoil


def keep(name: str, select: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[name] = select(tensors[name]).clone()

    return spoil


SPOILED = {
    "NaN": (set_weight(math.nan), "must be finite, got NaN or infinity in 1 rows"),
    "infinity": (set_weight(math.inf), "must be finite, got NaN or infinity in 1 rows"),
    "negative": (set_weight(-0.1), "must be >= 0, got -0.1"),
    "row too heavy": (set_weight(0.95), "row 1 sums to 1.05"),
    "row too light": (set_weight(0.5), "row 1 sums to 0.6"),
    "row nearly zero": (set_weight(0.0), "row 1 sums to 0.1"),
    "index too high": (set_index(6), r"indices must be in \[0, 6\).*got 0 to 6"),
    "index negative": (set_index(-1), r"indices must be in \[0, 6\).*got -1 to 3"),
    "columns missing": (keep("weights", lambda x: x[:, :1]), r"both be \[V_s, K\], got \[5, 2\] and \[5, 1\]"),
    "rows missing": (keep("indices", lambda x: x[:4]), r"both be \[V_s, K\], got \[4, 2\] and \[5, 2\]"),
    "one row only": (keep("is_exact", lambda x: x[:1]), r"is_exact of a projection must be \[5\], got \[1\]"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_wrong_values_are_refused(
    small: Projection, tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors = {name: getattr(small, name).clone() for name in ("indices", "weights", "is_exact")}
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        replace(small, **tensors)
    path = tmp_path / "w.safetensors"
    header = {"format": "xtoken_pl.projection.v1", "num_teacher": "6", "parameters": "{}"}
    save_file(tensors, path, metadata=header | {"student_fingerprint": "s", "teacher_fingerprint": "t"})
    with pytest.raises(ValueError, match=message):
        Projection.load(path)


def test_vectors_instead_of_matrices_are_refused(small: Projection) -> None:
    with pytest.raises(ValueError, match=r"both be \[V_s, K\], got \[10\] and \[10\]"):
        replace(small, indices=small.indices.flatten(), weights=small.weights.flatten())


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(small_pair: Built, tmp_path: Path, kept: float) -> None:
    path = tmp_path / "w.safetensors"
    small_pair.projection.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"w\.safetensors' is truncated or damaged"):
        Projection.load(path)


def test_a_safetensors_file_of_another_kind_is_refused(small: Projection, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"lm_head.weight": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match=r"must be a projection of format .*model\.safetensors' has format None"):
        Projection.load(path)
    small.save(path, overwrite=True)
    save_file(load_file(path), path, metadata={"format": "xtoken_pl.projection.v0"})
    with pytest.raises(ValueError, match=r"has format 'xtoken_pl\.projection\.v0'"):
        Projection.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none at '.*absent\.safetensors'"):
        Projection.load(tmp_path / "absent.safetensors")
