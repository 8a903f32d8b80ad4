"""Records a real vLLM server's answers, which tests of the client and of the stand-in server read.

Prints one line per exchange: request, HTTP status and answer. The server is the quickstart's SmolLM2 in float32,
started as `make test-served` starts it, and with `--api-key secret`:

    python tests/served/record.py http://127.0.0.1:8123 > tests/served/recorded_vllm.json
"""

import json
import sys
from typing import Any

import requests

PROMPT = "The capital of France is Paris."
IDS = [504, 3575, 282, 4649, 314, 7042, 30]


def completion(prompt: Any, top_k: int = 4, model: str = "smollm2") -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": top_k}


EXCHANGES: dict[str, tuple[str, Any]] = {
    "health": ("/health", None),
    "version": ("/version", None),
    "models": ("/v1/models", None),
    "tokenize": ("/tokenize", {"model": "smollm2", "prompt": PROMPT, "add_special_tokens": False}),
    "completion": ("/v1/completions", completion(IDS)),
    "two_prompts": ("/v1/completions", completion([IDS[:3], IDS[:2]], top_k=1)),
    "one_token": ("/v1/completions", completion(IDS[:1])),
    "top_k_above_limit": ("/v1/completions", completion(IDS, top_k=129)),
    "unknown_model": ("/v1/completions", completion(IDS, model="other")),
    "prompt_too_long": ("/v1/completions", completion([504] * 600)),
    "prompt_without_room_for_an_answer": ("/v1/completions", completion([504] * 512)),
    "unknown_token": ("/v1/completions", completion([504, 49152])),
    "empty_prompt": ("/v1/completions", completion([])),
    "no_key": ("/v1/models", None),
    "unknown_path": ("/nothing", None),
}


def main(url: str) -> None:
    lines = []
    for name, (path, body) in EXCHANGES.items():
        headers = {} if name == "no_key" else {"Authorization": "Bearer secret"}
        method = "GET" if body is None else "POST"
        answer = requests.request(method, url + path, json=body, headers=headers, timeout=300)
        exchange = {"method": method, "path": path, "request": body, "status": answer.status_code}
        exchange["answer"] = answer.json() if answer.content else None
        lines.append(f"{json.dumps(name)}: {json.dumps(exchange, ensure_ascii=False)}")
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main(sys.argv[1])
