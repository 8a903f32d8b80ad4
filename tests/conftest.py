"""What the test files share: real tokenizers, offline and built once, and hypothesis without chance or clocks."""

import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="xtoken_pl_datasets_")  # nothing is left from another run
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # DataLoader workers fork after the tokenizers were used

# The variables above are read when these are imported.
import json
from pathlib import Path

import pytest
import real_tokenizers
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

_DATASETS_CACHE = os.environ["HF_DATASETS_CACHE"]

pytest.register_assert_rewrite("loss_tester")
# Do not collect the conftest.py files as doctest modules: they would all have the same name.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")


def pytest_unconfigure() -> None:
    """Removes the cache of `datasets`."""
    shutil.rmtree(_DATASETS_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def llama3() -> PreTrainedTokenizerFast:
    return real_tokenizers.llama3()


@pytest.fixture(scope="session")
def qwen3() -> PreTrainedTokenizerFast:
    return real_tokenizers.qwen3()


@pytest.fixture(scope="session")
def o200k() -> PreTrainedTokenizerFast:
    return real_tokenizers.o200k()


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerFast:
    return real_tokenizers.smollm2()


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """Takes 20 seconds: only for what needs it."""
    folder: Path = tmp_path_factory.mktemp("gemma3")
    return real_tokenizers.gemma3(folder)


@pytest.fixture(scope="session")
def llama2_style() -> PreTrainedTokenizerFast:
    return real_tokenizers.llama2_style()


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerFast:
    return real_tokenizers.wordpiece()


@pytest.fixture(scope="session")
def smollm2_first_2000(smollm2: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """SmolLM2's tokens 0 to 1999 and the merges among them: a byte-level BPE that a slow reference can go through."""
    state = json.loads(smollm2.backend_tokenizer.to_str())
    vocab = {token: ident for token, ident in state["model"]["vocab"].items() if ident < 2000}
    merges = [merge for merge in state["model"]["merges"] if {*merge, "".join(merge)} <= vocab.keys()]
    state["model"] |= {"vocab": vocab, "merges": merges}
    start, end = "<|im_start|>", "<|im_end|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token=start, eos_token=end, pad_token=end
    )
