"""``python -m xtoken_pl convert``: a GGUF file as a model directory, which a student or a teacher can name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from xtoken_pl.cli.usage import run_function
from xtoken_pl.models.gguf import check_gguf_packages, check_tokens, load_gguf
from xtoken_pl.models.quantized_files import without_quantization
from xtoken_pl.models.text_model import read_config
from xtoken_pl.tokenization import load_tokenizer, save_tokenizer
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path, check_target
from xtoken_pl.utilities.words import reason_of


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_function(convert, arguments)


def convert(
    gguf: str,
    original: str,
    output: str,
    *,
    revision: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    overwrite: bool = False,
) -> None:
    """Write a GGUF file as a model directory: its dequantized weights, with the original's configuration and tokenizer.

    Args:
        gguf: The GGUF file.
        original: Directory or hub id of the model that the file was made from; its weights are not needed.
        output: Directory to write.
        revision: Branch, tag or commit of the original on the hub.
        dtype: Data type of the stored weights; float32 holds every quantized weight exactly.
        overwrite: Replace a directory that exists.
    """
    target, file = Path(output), Path(gguf)
    check_target(target, kind="folder", overwrite=overwrite)
    check_gguf_packages()
    if not file.is_file():
        raise UserError(f"gguf must be a GGUF file, and there is none at {gguf!r}; check the path")
    try:
        config = without_quantization(read_config(original, revision=revision))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"original must be a directory or a hub id with the config.json and the tokenizer of a model, but "
            f"{original!r} could not be read; check the path or the id. Reason: {reason_of(error)}"
        ) from error
    tokenizer = load_tokenizer(original, revision=revision)
    check_tokens(file, tokenizer, original=original)
    model = load_gguf(file, config, role="model", dtype=getattr(torch, dtype))
    with atomic_path(target, kind="folder", overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
    print(f"written to {output} in {dtype}: {type(model).__name__}, {model.num_parameters():,} parameters")
