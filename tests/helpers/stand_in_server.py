"""A small server that speaks vLLM's and SGLang's protocols for a tiny model, and fails as it is told to.

As a process: ``python tests/helpers/stand_in_server.py FOLDER --port 8123``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

import torch
from stand_in_answers import Row, rows_of_text, sglang_answer, vllm_answer, vllm_models, vllm_refusal
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

#: Failures of one request for rows. ``reset``: the connection is closed without an answer; ``cut``: in the middle of
#: it; ``gzip``: it is damaged; ``busy``: status 429 and Retry-After; ``slow``: no answer until the server stops;
#: ``token``: another prompt; ``redirect``: status 307.
# fmt: off
FailureKind = Literal[
    "reset", "cut", "gzip", "busy", "error", "redirect", "slow", "text", "short", "nan", "few", "no_mass", "too_much",
    "model", "token",
]
# fmt: on
RETRY_AFTER = 7


class StandInServer:
    """Serves a model on this machine until it is left as a context.

    Args:
        model: The model; computes in its own data type.
        tokenizer: Its tokenizer.
        name: Name of the model.
        port: Port; 0 chooses one.
        max_logprobs: Largest number of tokens of a row, -1 for any.
        max_model_len: Context length.
        api_key: Key that requests must carry.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "teacher",
        port: int = 0,
        max_logprobs: int = -1,
        max_model_len: int = 512,
        api_key: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.max_logprobs, self.max_model_len, self.api_key = max_logprobs, max_model_len, api_key
        #: Failures of the next requests for rows, one each; None for a good answer.
        self.failures: deque[FailureKind | None] = deque()
        #: Prompts of the requests for rows, and headers of all requests.
        self.prompts: list[list[int]] = []
        self.headers: list[dict[str, str]] = []
        self.has_tokenize = True
        self.retry_after = str(RETRY_AFTER)
        #: Whether a request with a wrong key is answered with that key.
        self.repeats_key = False
        self.connections: list[socket.socket] = []
        self._rows: dict[tuple[int, tuple[int, ...], int], list[Row | None]] = {}  # those of a text do not change
        self._lock = threading.Lock()
        # Of answers without a failure, which are asked for again and again.
        self._contents: dict[tuple[str, str, int, tuple[int, ...], int], bytes] = {}
        # Holds the port, on which this socket does not listen: while the server is stopped nobody else takes it.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", port))
        self._port: int = self._place.getsockname()[1]
        self._http: ThreadingHTTPServer | None = None
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._place.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        self._stopped.clear()
        handler = type("Handler", (_Handler,), {"stand_in": self})
        self._http = _HttpServer(("127.0.0.1", self._port), handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on."""
        self._stopped.set()
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None
        for connection in self.connections:
            with contextlib.suppress(OSError):  # of those that are closed
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def fail(self, *kinds: FailureKind | None) -> None:
        """Lets the next requests for rows fail, one each."""
        self.failures.extend(kinds)

    def take_failure(self) -> FailureKind | None:
        with self._lock:
            return self.failures.popleft() if self.failures else None

    def rows(self, ids: list[int], top_k: int) -> list[Row | None]:
        with self._lock:
            self.prompts.append(ids)
            key = (id(self.model), tuple(ids), top_k)
            if key not in self._rows:
                self._rows[key] = rows_of_text(self.model, ids, top_k)
            return self._rows[key]

    def content(self, ids: list[int], top_k: int, api: str, kind: FailureKind | None) -> bytes:
        """An answer with the rows of a text, which may be those of a failure."""
        key = (api, self.name, id(self.model), tuple(ids), top_k)
        rows = self.rows(ids, top_k)
        if kind is None and key in self._contents:
            return self._contents[key]
        name = "another" if kind == "model" else self.name
        spoiled = _spoiled(rows, kind)
        answer = vllm_answer(spoiled, name, self.tokenizer) if api == "vllm" else sglang_answer(spoiled, ids)
        content = json.dumps(answer).encode()
        if kind is None:
            self._contents[key] = content
        return content

    def wait_until_stopped(self) -> None:
        self._stopped.wait()


class _HttpServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # of a client that has gone
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandInServer

    def setup(self) -> None:
        super().setup()
        self.stand_in.connections.append(self.connection)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._is_allowed() and self.path == "/v1/models":
            self._answer(200, vllm_models(self.stand_in.name, self.stand_in.max_model_len))
        else:
            self._answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return
        if self.path == "/tokenize" and self.stand_in.has_tokenize:
            tokens = self.stand_in.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
            counts = {"count": len(tokens), "max_model_len": self.stand_in.max_model_len}
            self._answer(200, counts | {"tokens": tokens, "token_strs": None})
        elif self.path == "/v1/completions":
            if body["model"] == (name := self.stand_in.name):
                self._score(body["prompt"], body["prompt_logprobs"], "vllm")
            else:
                message = f"The model `{body['model']}` does not exist. Valid aliases: {name}."
                self._refuse(404, message, "model", "NotFoundError")
        elif self.path == "/generate":
            self._score(body["input_ids"], body["top_logprobs_num"], "sglang")
        else:
            self._answer(404, {"detail": "Not Found"})

    def _is_allowed(self) -> bool:
        self.stand_in.headers.append(dict(self.headers))
        key = self.stand_in.api_key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        shown = f": {self.headers.get('Authorization')}" if self.stand_in.repeats_key else ""
        self._answer(401, {"error": f"Unauthorized{shown}"})
        return False

    def _score(self, ids: list[int], top_k: int, api: str) -> None:
        server = self.stand_in
        limits = {"max_logprobs": server.max_logprobs, "max_model_len": server.max_model_len}
        refusal = vllm_refusal(ids, top_k, vocab_size=server.model.config.vocab_size, **limits)
        if refusal is not None:
            return self._refuse(400, *refusal)
        kind = server.take_failure()
        if kind in ("reset", "slow"):
            if kind == "slow":
                server.wait_until_stopped()
            self.close_connection = True
            return None
        if kind == "busy":
            return self._refuse(429, "Too many requests", headers={"Retry-After": server.retry_after})
        if kind == "error":
            return self._refuse(503, "Service Unavailable")
        if kind == "redirect":
            return self._refuse(307, "Temporary Redirect", headers={"Location": "https://localhost/v1"})
        ids = [(token + 1) % 10 for token in ids] if kind == "token" else ids
        content = b"<html>not JSON</html>" if kind == "text" else server.content(ids, top_k, api, kind)
        headers = {"Content-Encoding": "gzip"} if kind == "gzip" else None
        return self._write(200, content, headers, is_cut=kind == "cut")

    def _refuse(
        self,
        status: int,
        message: str,
        parameter: str | None = None,
        kind: str = "BadRequestError",
        headers: dict[str, str] | None = None,
    ) -> None:
        error = {"message": message, "type": kind, "param": parameter, "code": status}
        self._answer(status, {"error": error}, headers)

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._write(status, json.dumps(content).encode(), headers)

    def _write(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, *, is_cut: bool = False
    ) -> None:
        self.send_response(status)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        self.close_connection = self.close_connection or is_cut


def _spoiled(rows: list[Row | None], kind: FailureKind | None) -> list[Row | None]:
    """Rows with a failure of their numbers, which concerns the last token."""
    last = rows[-1]
    if last is None or kind is None:
        return rows
    best = last.top[0]
    change = {
        "nan": lambda: last._replace(top=[best._replace(log_prob=float("nan")), *last.top[1:]]),
        "few": lambda: last._replace(top=last.top[:-1], observed=last.observed._replace(rank=10**6)),
        "no_mass": lambda: last._replace(top=[best._replace(log_prob=float("-inf")), *last.top[1:]]),
        "too_much": lambda: last._replace(top=[best._replace(log_prob=0.5), *last.top[1:]]),
    }
    if kind == "short":
        return rows[:-1]
    return [*rows[:-1], change[kind]()] if kind in change else rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="teacher")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=getattr(torch, options.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    with StandInServer(model, tokenizer, name=options.name, port=options.port) as server:
        print(server.url, flush=True)
        server.wait_until_stopped()


if __name__ == "__main__":
    main()
