"""The source of a model and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.utilities.errors import UserError

DType = Literal["auto", "float32", "bfloat16", "float16", "float64"]


Quantization = Literal["8bit", "4bit"]


@dataclass(kw_only=True)
class ModelSource:
    """The source of a causal language model and its tokenizer.

    Attributes:
        model: Directory, or hub id. Files that are quantized are dequantized if transformers can do that while it loads
            them, and if the layers cannot run as they are; otherwise they stay quantized.
        revision: Branch, tag or commit on the hub; not for a local directory.
        dtype: Data type of the weights; ``auto`` uses the checkpoint's own.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2``, ...; None lets transformers choose.
        trust_remote_code: Whether to run code that comes with the model.
        compile: Whether to compile every layer with ``torch.compile``.
        chat_template: Path of a Jinja file, for conversations; None uses the tokenizer's own template.
    """

    model: str
    revision: str | None = None
    dtype: DType = "float32"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    compile: bool = False
    chat_template: str | None = None


def load_vocabulary(source: ModelSource) -> CanonicalVocabulary:
    """Loads the canonical vocabulary of a model's own tokenizer, and sets its chat template.

    Raises:
        UserError: If the tokenizer or the chat template cannot be loaded, or a local directory is given a revision.
    """
    if source.revision is not None and Path(source.model).exists():
        raise UserError(
            f"revision belongs to a model on the hub, but {source.model!r} is a local path, got revision="
            f"{source.revision!r}; leave it out, or give the model's id"
        )
    tokenizer = load_tokenizer(source.model, revision=source.revision, trust_remote_code=source.trust_remote_code)
    if source.chat_template is not None:
        file = Path(source.chat_template)
        if not file.is_file():
            raise UserError(
                f"chat_template must be a Jinja file, but there is none at {source.chat_template!r}; check the path "
                "(relative paths start at the working directory), or leave it out to use the tokenizer's own template"
            )
        try:
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"chat_template must be UTF-8, but {str(file)!r} is not ({error}); convert it") from error
    return CanonicalVocabulary.from_tokenizer(tokenizer)
