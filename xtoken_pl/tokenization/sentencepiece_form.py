"""The fast form of a SentencePiece model, for directories that have no tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.tokenization_utils_base import generate_merges

from xtoken_pl.tokenization.components import SPACES_AT_ENDS, InexactTokenizerError

# Types of pieces in sentencepiece_model.proto
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_UNIGRAM, _BPE = 1, 2


def read_model(file: Path) -> Any | None:
    """Parses a SentencePiece model; None if the file is another one."""
    try:
        proto = import_protobuf().ModelProto.FromString(file.read_bytes())
    except ImportError:
        raise
    except Exception:  # protobuf's DecodeError has moved between its versions
        return None
    return proto if len(proto.pieces) else None


def check(proto: Any, name: str) -> None:
    """Raises an error if a SentencePiece model has no exact fast form.

    Args:
        proto: The model.
        name: Its name, for the message.

    Raises:
        InexactTokenizerError: If it has no byte fallback, rewrites texts by rules of its own, has user-defined pieces
            that texts become in another way, or is of a kind that the `tokenizers` library lacks.
    """
    if reason := _kind_without_form(proto) or _pieces_without_form(proto):
        raise InexactTokenizerError(
            f"the SentencePiece model {name!r} has no exact fast form: {reason}. Use a model with byte fallback and "
            "the normalization rule identity, or save the tokenizer as tokenizer.json, whose ids are then used"
        )


def _kind_without_form(proto: Any) -> str | None:
    """Names a setting of a model for which the library has no counterpart; None if it has one for all."""
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (_UNIGRAM, _BPE):
        return "it is of the kind word or char, not unigram or BPE"
    if not trainer.byte_fallback:
        return "it has no byte fallback, so unknown characters are lost"
    if trainer.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        return "it does not write a space as ▁ before a word"
    if rules.precompiled_charsmap:
        # The library replaces a whole grapheme cluster whose first character has an entry in the rules.
        return (
            f"the tokenizers library applies its rewriting rules ({rules.name}) to clusters of characters, and loses "
            "some, such as U+0354 behind U+2049"
        )
    return None


def _pieces_without_form(proto: Any) -> str | None:
    """Names pieces of a model that the library would find elsewhere in a text than SentencePiece; None if none are."""
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    if any(piece.type == _UNUSED for piece in proto.pieces):
        return "it has pieces of the type unused, which the tokenizers library would use"
    if trainer.model_type == _UNIGRAM and not _is_spelled(proto):
        return "it has pieces with characters that are no pieces, so that a text may spell <s> or a byte piece"
    user_defined = _of_type(proto, _USER_DEFINED)
    if not user_defined:
        return None
    named = f"it has user-defined pieces, such as {user_defined[0]!r}"
    if trainer.model_type == _UNIGRAM:
        return f"{named}, whose scores as a unigram model are not those in the file"
    # The library prepares each piece as if it were a text, or each stretch between pieces.
    if rules.add_dummy_prefix:
        return f"{named}, and puts a space before a text, which the library would also put behind such a piece"
    if rules.remove_extra_whitespaces:
        return f"{named}, and removes extra spaces, which the library would also remove beside such a piece"
    if with_space := next((piece for piece in user_defined if " " in piece), None):
        return f"its user-defined piece {with_space!r} has a space that is not written as ▁"
    return None


def probes(proto: Any) -> Iterator[str]:
    """Yields texts with each user-defined piece inside a word, between spaces, alone and twice."""
    for piece in _of_type(proto, _USER_DEFINED):
        text = piece.replace("▁", " ")
        yield from (f"a{text}b", f"a {text} b", text, f"{text} {text}")


def _of_type(proto: Any, kind: int) -> list[str]:
    return [piece.piece for piece in proto.pieces if piece.type == kind]


def fast_form(proto: Any) -> Tokenizer:
    """Builds the tokenizer of a SentencePiece model that :func:`check` passes."""
    tokenizer = Tokenizer(_model(proto))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(proto.normalizer_spec))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for kind in (_CONTROL, _UNKNOWN):
        pieces = _of_type(proto, kind)
        tokenizer.add_tokens([AddedToken(piece, special=True, normalized=False) for piece in pieces])
    # Found behind the normalizer, which writes spaces as the ▁ that such pieces may have.
    pieces = _of_type(proto, _USER_DEFINED)
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=True) for piece in pieces])
    return tokenizer


def _model(proto: Any) -> models.Unigram | models.BPE:
    """A model in which texts become normal pieces alone, as in SentencePiece; the library tells no kinds apart."""
    trainer = proto.trainer_spec
    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    if trainer.model_type == _UNIGRAM:
        # Less probable than the characters that spell it, each of which is a piece.
        longest = max(map(len, vocabulary))
        never = (longest + 1) * min(0.0, *normal.values()) - 1.0
        scores = [(piece, normal.get(piece, never)) for piece in vocabulary]
        return models.Unigram(scores, unk_id=trainer.unk_id, byte_fallback=True)
    merges = generate_merges({piece: vocabulary[piece] for piece in normal}, normal)
    return models.BPE(vocabulary, merges, unk_token=trainer.unk_piece, fuse_unk=True, byte_fallback=True)


def _is_spelled(proto: Any) -> bool:
    """Whether each character of all pieces is a piece, too, so that texts need no other ones."""
    normal = {piece.piece for piece in proto.pieces if piece.type == _NORMAL}
    in_text = {piece.piece for piece in proto.pieces if piece.type != _USER_DEFINED}
    return {character for piece in in_text for character in piece} <= normal


def _normalizers(rules: Any) -> list[Any]:
    parts: list[Any] = []
    if rules.remove_extra_whitespaces:
        parts += [normalizers.Replace(Regex(SPACES_AT_ENDS), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    parts += [normalizers.Prepend("▁")] if rules.add_dummy_prefix else []
    return [*parts, normalizers.Replace(" ", "▁")]
