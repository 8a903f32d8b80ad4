"""A server that runs a teacher, as a plain specification."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from xtoken_pl.utilities.checks import check_at_least_one, check_choice
from xtoken_pl.utilities.errors import UserError

ServerApi = Literal["vllm", "sglang"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers with log-probabilities of the tokens of a prompt.

    Attributes:
        url: Address; that of vLLM's OpenAI-compatible API ends in ``/v1``.
        model: Name under which the server knows the model; the teacher's ``model`` by default.
        top_k: Number of most probable tokens to ask for in each row, or ``all`` (vLLM only).
        api: Protocol: ``vllm`` (``/v1/completions`` with ``prompt_logprobs``) or ``sglang`` (``/generate``).
        concurrency: Number of requests of a process that are under way at a time.
        timeout: Seconds to wait for a connection, for an answer, and for each further part of it.
        patience: Seconds without a usable answer, over all retries, after which the run stops.
        api_key_env: Name of the environment variable that holds the API key, in capital letters. The key itself is in
            no configuration, log or checkpoint.

    Raises:
        UserError: If a value is invalid.
    """

    url: str
    model: str | None = None
    top_k: int | Literal["all"] = 64
    api: ServerApi = "vllm"
    concurrency: int = 8
    timeout: float = 120.0
    patience: float = 600.0
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        check_choice("api", self.api, ServerApi)
        check_at_least_one("concurrency", self.concurrency)
        if self.top_k != "all":
            check_at_least_one("top_k of a server", self.top_k, "'all' asks for every token")
        for name in ("timeout", "patience"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"{name} of a server must be a finite number of seconds > 0, got {value}")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            # The value is not repeated: it may be the key itself.
            raise UserError(
                "api_key_env of a server must be the name of an environment variable (capital letters, digits and _), "
                "not the key itself; write export TEACHER_API_KEY=..., and api_key_env: TEACHER_API_KEY"
            )


def _check_url(url: str) -> None:
    try:
        address = urlsplit(url)
        is_address = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # brackets that are not closed, or a port that is no number
        address, is_address = urlsplit(""), False
    if "@" in url or address.query or address.fragment:
        # The value is not repeated: it may hold a password or a key.
        raise UserError(
            "url of a server must be an address alone, without a user, a password or a query, which logs would show; "
            "give a key by the environment variable that api_key_env names"
        )
    if not is_address or re.search(r"\s", url):
        raise UserError(
            "url of a server must be an address that begins with http:// or https://, such as "
            f"http://localhost:8000/v1, got {url!r}; correct it"
        )
