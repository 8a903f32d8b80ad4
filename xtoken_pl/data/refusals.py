"""Settings and sources that a data module refuses before any text is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from xtoken_pl.data.mixture import Part
from xtoken_pl.data.packing import Packing
from xtoken_pl.data.sources.text_source import PromptSource
from xtoken_pl.specs import PromptSettings
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


def check_split(split: str, splits: Mapping[str, Sequence[Part]]) -> None:
    """Refuses a split without texts."""
    if not splits.get(split):
        known = ", ".join(name for name, parts in splits.items() if parts)
        raise UserError(f"split must be one with texts ({known}), got {split!r}; set data.{split}.path, or another")


def check_caches(caches: Collection[str], *, streaming: bool) -> None:
    """Refuses teachers with a cache when streaming."""
    if caches and streaming:
        raise UserError(
            f"a cache knows windows by their place, and a stream has none, but teacher {next(iter(caches))!r} has "
            "a cache; set data.streaming to false, or leave `cache` out"
        )


def check_prompts(
    prompts: PromptSettings | None, packing: Packing, sequence_length: int, sides: Collection[CanonicalVocabulary]
) -> None:
    """Refuses packed windows, which hold several documents, and windows without room for a prompt.

    Args:
        prompts: How prompts are taken; None for windows without prompts.
        packing, sequence_length: See :class:`xtoken_pl.DistillDataModule`.
        sides: Vocabularies of the student and of the teachers.
    """
    if prompts is None:
        return
    if packing != "none":
        raise UserError(
            f"a window must hold one document for the student to write behind its prompt, got packing={packing!r}; set "
            "data.packing to none, or leave model.rollouts out"
        )
    # A prompt has at least one token behind those that a tokenizer puts before it.
    longest = sequence_length - 1 - max(len(side.prefix_ids) for side in sides)
    if prompts.max_new_tokens > longest:
        raise UserError(
            f"max_new_tokens must leave room in sequence_length for a prompt, got max_new_tokens="
            f"{prompts.max_new_tokens} and sequence_length={sequence_length}; set model.rollouts.max_new_tokens to at "
            f"most {longest}, or data.sequence_length higher"
        )


def with_answers(splits: Mapping[str, Sequence[Part]], prompts: PromptSettings | None) -> dict[str, list[Part]]:
    """Refuses sources of prompts where answers are learned; elsewhere the rows of all sources need none.

    Args:
        splits: Parts by split.
        prompts: How prompts are taken from the training data; None if the student writes nothing.
    """
    checked: dict[str, list[Part]] = {}
    for split, parts in splits.items():
        if split == "train" and prompts is not None and prompts.only:
            sources = map(PromptSource.from_source, (part.source for part in parts))
            checked[split] = [replace(part, source=source) for part, source in zip(parts, sources, strict=True)]
            continue
        for part in parts:
            _check_completion(part)
        checked[split] = list(parts)
    return checked


def _check_completion(part: Part) -> None:
    source = part.source
    if source.prompt_field is None or source.completion_field is not None:
        return
    way_out = "let the student write every answer (model.rollouts with share: 1 and warm_up_steps: 0)"
    raise UserError(
        f"prompt_field and completion_field belong together where answers are learned or measured, but {part.setting} "
        f"has only prompt_field={source.prompt_field!r}; set completion_field, too, or "
        f"{way_out if part.split == 'train' else 'leave the source out'}"
    )
