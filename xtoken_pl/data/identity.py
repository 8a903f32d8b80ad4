"""Description of the training data and their order, which must stay the same when training resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datasets import Dataset

from xtoken_pl.checkpoints import SOURCES_KEY, DataIdentity
from xtoken_pl.checkpoints.fingerprints import training_windows_fingerprint
from xtoken_pl.data.part_windows import PartWindows
from xtoken_pl.specs import PromptSettings


def describe_data(
    parts: Sequence[PartWindows],
    *,
    seed: int,
    batch_size: int,
    num_processes: int,
    num_workers: int,
    shuffle_buffer: int,
) -> DataIdentity:
    """Describes the settings that determine which windows are read, and in which order.

    The order of stored windows does not depend on the number of processes. The order of streamed ones does, since each
    worker reads its own share of the texts.

    Args:
        parts: Parts of the training data, with their windows; IterableDatasets are streamed.
        seed: Seed of the order.
        batch_size: Number of windows of a batch on each process.
        num_processes: Number of processes that train together.
        num_workers: Number of loader workers of each process.
        shuffle_buffer: Number of windows that are shuffled together when streaming.
    """
    first = parts[0].maker
    identity: DataIdentity = {"seed of the order (data.seed, else seed_everything)": seed}
    if first.packing != "none":
        identity["data.packing"] = first.packing
    if first.normalizer is not None:
        identity["data.normalize"] = "true"
    if first.prompts is not None:
        identity["prompts (model.rollouts)"] = _prompts_in_words(first.prompts, parts)
    if len(parts) > 1:
        identity[SOURCES_KEY] = f"[{', '.join(part.part.name for part in parts)}]"
    for part in parts:
        identity |= _of_part(part)
    if isinstance(parts[0].windows, Dataset):
        return identity | {"global batch size (processes x batch_size)": num_processes * batch_size}
    return identity | {
        "number of processes": num_processes,
        "data.num_workers": num_workers,
        "data.batch_size": batch_size,
        "data.shuffle_buffer": shuffle_buffer,
    }


def changeable_settings(parts: Sequence[PartWindows]) -> dict[str, str]:
    """Returns the settings of the training data that may change when training resumes."""
    alphas = {part.part.setting: part.part.source.alphas for part in parts}
    return {f"alphas of {setting}": str(own) for setting, own in alphas.items() if own is not None}


def _prompts_in_words(prompts: PromptSettings, parts: Sequence[PartWindows]) -> str:
    """Lists the settings that determine the prompts of some parts."""
    words = ["prompts alone" if prompts.only else "prompts and windows", f"max_new_tokens: {prompts.max_new_tokens}"]
    if any(not part.part.source.holds_conversations for part in parts):
        is_by_length = prompts.end is None
        words.append(f"prompt_bytes: {prompts.num_bytes}" if is_by_length else f"prompt_end: {prompts.end!r}")
    return ", ".join(words)


def _of_part(part: PartWindows) -> DataIdentity:
    source, windows, fingerprint = part.part.source, part.windows, part.maker.fingerprint
    of = f" of {part.part.setting}" if part.part.name else ""
    identity: DataIdentity = {}
    if of or (source.teachers, source.alphas, source.teacher_field) != (None, None, None):
        identity[f"teachers{of}"] = f"[{', '.join(part.part.teachers)}]"
    if source.weight is not None:
        identity[f"weight{of}"] = str(float(source.weight))
    if isinstance(windows, Dataset):
        return identity | {
            f"number of windows{of}": len(windows),
            f"windows (texts, tokenizers, sequence_length){of}": training_windows_fingerprint(windows, fingerprint),
        }
    texts = replace(source, weight=None, teachers=None, alphas=None)
    return identity | {
        f"texts ({part.part.setting})": str(texts),
        f"windows (tokenizers, sequence_length){of}": fingerprint,
    }
