"""The tokenizer that is loaded is the one of tokenizer.json, whatever class transformers chooses."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer
from tokenizer_folders import PAIRS, change_file, first_tokens, write_folder
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    CohereTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

import xtoken_pl
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.utilities.errors import UserError

SMALL = ["llama3", "qwen3", "o200k", "smollm2", "llama2_style", "packing", "splitting"]
SAMPLES = [
    *TEXTS[:3],
    "In 1984, 12345 of 67; 3.14",
    "  two  spaces   and    more  ",
    "def f(x):\n    return x**2\n\n\n\tif x:\r\n\t\tpass\t \n",
    "I'LL won't, e.g. don't! <b>https://example.org/a_b-c?d=1</b> HTTPServer camelCase",
    "naïve café Å e\u0301 ﬁ ½ ① ＡＢＣ Việt Nam",
    "Привет, мир! Ελληνικά 数字１２３ 日本語 한국어 שלום مرحبا हिन्दी ไทย",
    "👩\u200d👩\u200d👧 \u00a0 \u200b \u2003 \ufeff ▁a ▁▁ Ġb",
    "a",
    "",
]


def small(request: pytest.FixtureRequest, name: str) -> PreTrainedTokenizerFast:
    """A small tokenizer with the parts of a real one."""
    if name in ("packing", "splitting"):
        return packing_tokenizer() if name == "packing" else splitting_tokenizer()
    tokenizer: PreTrainedTokenizerFast = request.getfixturevalue(name)
    return tokenizer if name == "llama2_style" else first_tokens(tokenizer, 2000)


@pytest.fixture(scope="module", params=SMALL)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return small(request, request.param)


def assert_ids_are_those_of_the_file(loaded: PreTrainedTokenizerBase, folder: Path) -> None:
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert loaded(SAMPLES)["input_ids"] == [file.encode(text).ids for text in SAMPLES]
    plain = [file.encode(text, add_special_tokens=False).ids for text in SAMPLES]
    vocabulary = CanonicalVocabulary.from_tokenizer(loaded)
    assert vocabulary.encode(SAMPLES) == plain
    assert list(vocabulary.prefix_ids) == file.encode("a").ids[: -len(file.encode("a", add_special_tokens=False).ids)]
    assert len(loaded) == file.get_vocab_size()
    assert loaded.get_vocab() == file.get_vocab()


@pytest.mark.parametrize(("model_type", "tokenizer_class"), PAIRS)
def test_ids_are_those_of_the_file_under_every_class(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, model_type: str | None, tokenizer_class: str | None
) -> None:
    folder = write_folder(tmp_path, tokenizer, model_type, tokenizer_class)
    if tokenizer_class == "T5Tokenizer":  # a class that cannot read the file at all
        with pytest.raises(UserError, match=re.escape(str(folder))):
            load_tokenizer(str(folder))
        return
    assert_ids_are_those_of_the_file(load_tokenizer(str(folder)), folder)


@pytest.mark.parametrize(
    ("name", "model_type", "tokenizer_class"),
    [
        pytest.param("llama3", "llama", "GPT2Tokenizer", marks=pytest.mark.slow),
        pytest.param("qwen3", "qwen2", None, marks=pytest.mark.slow),
        pytest.param("o200k", "phi3", "GPT2Tokenizer", marks=pytest.mark.slow),
        ("smollm2", "llama", "GPT2Tokenizer"),
    ],
)
def test_ids_of_a_whole_vocabulary_are_those_of_the_file(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, model_type: str, tokenizer_class: str | None
) -> None:
    folder = write_folder(tmp_path, request.getfixturevalue(name), model_type, tokenizer_class)
    assert_ids_are_those_of_the_file(load_tokenizer(str(folder)), folder)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "tokenizer_class"), PAIRS[::2])
def test_ids_of_gemma_are_those_of_the_file_under_every_class(
    gemma3: PreTrainedTokenizerFast, tmp_path: Path, model_type: str | None, tokenizer_class: str | None
) -> None:
    folder = write_folder(tmp_path, gemma3, model_type, tokenizer_class)
    assert_ids_are_those_of_the_file(load_tokenizer(str(folder)), folder)


def test_digits_of_llama3_stay_together_in_a_model_of_the_qwen_family(
    llama3: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    loaded = load_tokenizer(str(write_folder(tmp_path, llama3, "qwen2")))
    assert loaded.tokenize("1984") == ["198", "4"]
    assert CanonicalVocabulary.from_tokenizer(loaded).prefix_ids == (loaded.bos_token_id,)


def test_llama2_keeps_every_space_under_the_class_of_llama(
    llama2_style: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    loaded = load_tokenizer(str(write_folder(tmp_path, llama2_style, "llama", "LlamaTokenizer")))
    assert "".join(loaded.tokenize("    return x")) == "▁▁▁▁▁return▁x"


@pytest.fixture(scope="module")
def under_qwen(
    llama3: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedTokenizerBase, Tokenizer]:
    folder = write_folder(tmp_path_factory.mktemp("under_qwen"), first_tokens(llama3, 2000), "qwen2")
    return load_tokenizer(str(folder)), Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("aZ09 \t\n\r'._é\u0301")), max_size=40))
def test_ids_of_any_text_are_those_of_the_file(
    under_qwen: tuple[PreTrainedTokenizerBase, Tokenizer], text: str
) -> None:
    loaded, file = under_qwen
    assert loaded(text)["input_ids"] == file.encode(text).ids


# What else comes from the class, and what from the folder


@pytest.mark.parametrize(
    ("model_type", "kind", "name"),
    [
        ("qwen2", Qwen2Tokenizer, "packing"),
        ("gpt2", GPT2Tokenizer, "packing"),
        ("gpt_neox", GPTNeoXTokenizer, "packing"),
        ("cohere", CohereTokenizer, "packing"),
        ("llama", LlamaTokenizer, "llama2_style"),
        ("gemma3_text", GemmaTokenizer, "llama2_style"),
    ],
)
def test_a_class_that_fits_is_kept_with_its_fingerprint(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    model_type: str,
    kind: type[PreTrainedTokenizerFast],
    name: str,
) -> None:
    tokenizer = small(request, name)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    own = kind(vocab=model["vocab"], merges=merges, **tokenizer.special_tokens_map)
    folder = write_folder(tmp_path, own, model_type, kind.__name__)
    caplog.set_level(logging.INFO)
    ours, theirs = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs) is kind
    fingerprints = [CanonicalVocabulary.from_tokenizer(loaded).fingerprint for loaded in (ours, theirs)]
    assert fingerprints[0] == fingerprints[1]
    assert "tokenizer.json" not in caplog.text


def test_qwen3_keeps_its_class_whose_file_writes_the_same_parts_in_another_way(
    qwen3: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, first_tokens(qwen3, 2000), "qwen3", "Qwen2Tokenizer")
    no_offsets = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    state = json.loads((folder / "tokenizer.json").read_text())
    state["pre_tokenizer"]["pretokenizers"][1] = no_offsets
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    change_file(folder, pre_tokenizer=state["pre_tokenizer"], decoder=no_offsets, model=state["model"] | affixes)
    assert type(load_tokenizer(str(folder))) is Qwen2Tokenizer


def test_a_log_line_says_why_the_file_itself_was_loaded(
    llama3: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path, first_tokens(llama3, 2000), "qwen2")
    with caplog.at_level(logging.INFO):
        load_tokenizer(str(folder))
    (line,) = [record.getMessage() for record in caplog.records if str(folder) in record.getMessage()]
    assert re.search(r"loaded tokenizer\.json itself.*Qwen2Tokenizer.*normalizer, pre-tokenizer.*'1984': 1\|9", line)


def test_roles_settings_and_chat_template_of_the_folder_remain(llama3: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer = first_tokens(llama3, 2000)
    given: dict[str, Any] = {"padding_side": "left", "model_max_length": 777, "pad_token": tokenizer.eos_token}
    folder = write_folder(tmp_path, tokenizer, "qwen2", **given)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    loaded = load_tokenizer(str(folder))
    assert loaded.special_tokens_map == tokenizer.special_tokens_map | {"pad_token": tokenizer.eos_token}
    assert (loaded.padding_side, loaded.model_max_length) == ("left", 777)
    assert loaded.name_or_path == str(folder)
    rendered = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == f"{tokenizer.bos_token}hi"


def test_a_special_token_that_only_the_configuration_declares_is_added(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, packing_tokenizer(), "qwen2", pad_token="[PAD]")
    loaded = load_tokenizer(str(folder))
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    assert (loaded.pad_token, loaded.pad_token_id, len(loaded)) == ("[PAD]", size, size + 1)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json"])
def test_an_ordinary_token_that_the_file_lacks_is_left_out_and_named(
    llama2_style: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    size = len(llama2_style)
    token = {"content": "<pad>", "special": False, "normalized": False, "lstrip": False, "rstrip": False}
    declared = {"added_tokens_decoder": {str(size): token | {"single_word": False}}}
    given = declared if name == "tokenizer_config.json" else {}
    folder = write_folder(tmp_path, llama2_style, "llama", "LlamaTokenizer", **given)
    if not given:
        (folder / name).write_text(json.dumps({"<pad>": size}))
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<pad>") == size
    with pytest.warns(UserWarning, match=rf"{folder}.*left out, so that texts never become them: <pad>$"):
        loaded = load_tokenizer(str(folder))
    assert_ids_are_those_of_the_file(loaded, folder)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert loaded("a <pad> b")["input_ids"] == file.encode("a <pad> b").ids


def test_a_tokenizer_with_dropout_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, packing_tokenizer())
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change_file(folder, model=model | {"dropout": 0.1})
    with pytest.raises(UserError, match=rf"{folder}.*dropout of 0\.1"):
        load_tokenizer(str(folder))


def test_a_file_that_cannot_be_loaded_unchanged_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtoken_pl.tokenization.load.from_file", lambda file, tokenizer, *_: tokenizer)
    folder = write_folder(tmp_path, packing_tokenizer(), "qwen2")
    with pytest.raises(UserError, match=rf"ids of its tokenizer\.json.*{folder}.*Qwen2Tokenizer.*1984"):
        load_tokenizer(str(folder))


def test_truncation_and_padding_in_the_file_do_not_shorten_texts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, packing_tokenizer(), "qwen2")
    state = Tokenizer.from_file(str(folder / "tokenizer.json"))
    state.enable_truncation(4)
    state.enable_padding(length=4, pad_token="<|end_of_text|>", pad_id=1)
    state.save(str(folder / "tokenizer.json"))
    vocabulary = CanonicalVocabulary.from_tokenizer(load_tokenizer(str(folder)))
    for text in ("a", "In 1984, many more words than four"):
        (ids,) = vocabulary.encode([text])
        assert b"".join(vocabulary.token_bytes[token] for token in ids) == text.encode()


def test_the_file_of_a_hub_id_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--someone--a-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    write_folder(snapshot, packing_tokenizer(), "qwen2")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    loaded = load_tokenizer("someone/a-model")
    assert_ids_are_those_of_the_file(loaded, snapshot)


def test_tokenizers_are_loaded_in_one_place() -> None:
    root = Path(xtoken_pl.__file__).parent
    callers = [
        file for file in root.rglob("*.py") if "AutoTokenizer.from_pretrained" in file.read_text(encoding="utf-8")
    ]
    names = {str(file.relative_to(root)) for file in callers}
    assert names == {"tokenization/load.py", "cli/prepare.py"}  # the latter reads a GGUF file
