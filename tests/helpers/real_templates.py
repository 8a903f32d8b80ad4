"""Real tokenizers with the chat templates that their models ship, and what each template can write.

SmolLM2's template comes with its GGUF file. Those of Qwen 3, Llama 3.2 and Gemma 3 are files of the pip package trl,
which stores them as the models' repositories have them. The package is not imported. Callers share the tokenizers, so
they must not change them.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import real_tokenizers
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.data.cutting import Window
from xtoken_pl.utilities.errors import UserError

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class RealTemplate:
    """A model's chat template, with its tokenizer.

    Attributes:
        name: Name of the model's family.
        assistant: Text before what the assistant writes.
        end: Text after it.
        writes_tools: Whether the schemas of ``tools`` are written.
        writes_calls: Whether the ``tool_calls`` of a message are written; otherwise they are dropped silently.
        max_calls: Largest number of calls in a message that is not rejected.
        writes_content_beside_calls: Whether the content of a message with calls is written.
        writes_results: Whether messages of the role ``tool`` are written; otherwise they are rejected.
        writes_reasoning: Whether the ``reasoning_content`` behind the last question is written.
    """

    name: str
    load: Callable[[], PreTrainedTokenizerFast]
    assistant: str
    end: str
    writes_tools: bool = False
    writes_calls: bool = False
    max_calls: int = 99
    writes_content_beside_calls: bool = True
    writes_results: bool = True
    writes_reasoning: bool = False

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer with the template."""
        return _tokenizer(self)

    @property
    def vocabulary(self) -> CanonicalVocabulary:
        """The tokenizer's vocabulary."""
        return _vocabulary(self)

    def __str__(self) -> str:
        return self.name


def shipped_template(name: str) -> str:
    """Reads a template from the pip package trl."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("no module 'trl': pip install --no-deps trl==1.16.0", name="trl")
    return (Path(spec.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text()


def _with_shipped(tokenizer: PreTrainedTokenizerFast, name: str) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = shipped_template(name)
    return changed


def _gemma3() -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        return _with_shipped(real_tokenizers.gemma3(Path(folder)), "gemma3")


@cache
def _tokenizer(template: RealTemplate) -> PreTrainedTokenizerFast:
    return template.load()


@cache
def _vocabulary(template: RealTemplate) -> CanonicalVocabulary:
    return CanonicalVocabulary.from_tokenizer(template.tokenizer)


CHATML_TURN = ("<|im_start|>assistant\n", "<|im_end|>")
SMOLLM2 = RealTemplate("smollm2", real_tokenizers.smollm2, *CHATML_TURN)
QWEN3 = RealTemplate(
    "qwen3",
    lambda: _with_shipped(real_tokenizers.qwen3(), "qwen3"),
    *CHATML_TURN,
    writes_tools=True,
    writes_calls=True,
    writes_reasoning=True,
)
LLAMA3 = RealTemplate(
    "llama3",
    lambda: _with_shipped(real_tokenizers.llama3(), "llama3_2"),
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
    writes_tools=True,
    writes_calls=True,
    max_calls=1,
    writes_content_beside_calls=False,
)
#: Assembling its tokenizer takes 20 seconds.
GEMMA3 = RealTemplate("gemma3", _gemma3, "<start_of_turn>model\n", "<end_of_turn>", writes_results=False)


def windows_of(
    folder: Path,
    student: RealTemplate,
    teachers: Sequence[RealTemplate],
    chats: Sequence[Mapping[str, Any]],
    *,
    sequence_length: int = 1500,
    **options: Any,
) -> list[Window]:
    """The training windows that a run would read, each teacher under its template's name.

    Args:
        folder: Where the conversations are written.
        student: The student's side.
        teachers: The teachers' sides.
        chats: Rows with ``messages``, and ``tools`` if they have any.
        sequence_length: Maximum number of tokens of a window.
        options: Fields of :class:`xtoken_pl.TextSource`.
    """
    columns = list(dict.fromkeys(column for chat in chats for column in chat))
    rows = [{column: chat.get(column) for column in columns} for chat in chats]
    path = folder / f"chats-{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if "tools" in columns:
        options["tools_field"] = "tools"
    source = TextSource(path=str(path), messages_field="messages", **options)
    data = DistillDataModule(source, sequence_length=sequence_length, num_workers=0)
    data.connect(student.vocabulary, {teacher.name: teacher.vocabulary for teacher in teachers})
    data.setup("fit")
    windows: list[Window] = []
    with suppress(UserError):  # behind the last window
        while True:
            windows.append(data.window("train", len(windows)))
    return windows
