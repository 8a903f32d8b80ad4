"""Conversations with tools and reasoning, as transformers' chat templates take them."""

from __future__ import annotations

import copy
from typing import Any

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city now.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
        },
    },
]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


#: Nothing but contents; an answer repeats its question, and some bytes are not ASCII.
PLAIN: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "What is 12 + 345, in words?"},
        {"role": "assistant", "content": "You asked: What is 12 + 345, in words?\n\n- three hundred fifty-seven"},
        {"role": "user", "content": "And 数字 (naïve)?"},
        {"role": "assistant", "content": "数字 means “digits”; naïve 👩‍👧 is\tfine  ."},
    ]
}

#: What a tool returned, without a call; the answer repeats it.
RESULT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief, and use tools."},
        {"role": "user", "content": "Weather in Zürich?"},
        {"role": "assistant", "content": "Let me look that up for you."},
        {"role": "tool", "content": "sunny, 21 degrees, wind 7"},
        {"role": "assistant", "content": "It says: sunny, 21 degrees, wind 7. Enjoy!"},
    ]
}

#: A call beside a content, its result, reasoning before the answer. No part of an answer contains another.
CALL: dict[str, Any] = {
    "tools": TOOLS,
    "messages": [
        {"role": "system", "content": "Be brief, and use tools."},
        {"role": "user", "content": "Weather in Zürich?"},
        {
            "role": "assistant",
            "content": "Let me look that up for you.",
            "tool_calls": [call("get_weather", city="Zürich (数)", days=12)],
        },
        {"role": "tool", "content": '{"sky": "sunny", "degrees": 21}'},
        {
            "role": "assistant",
            "reasoning_content": "The tool says 21 degrees,\nso no coat is needed.",
            "content": 'It is sunny: {"degrees": 21}.',
        },
    ],
}

#: The same without a content beside the call, which Llama 3's template would drop.
BARE_CALL: dict[str, Any] = copy.deepcopy(CALL)
BARE_CALL["messages"][2]["content"] = ""

#: Two calls at once, without a content.
TWO_CALLS: dict[str, Any] = {
    "tools": TOOLS,
    "messages": [
        {"role": "user", "content": "Add 1 and 23, and 4 and 56."},
        {"role": "assistant", "content": None, "tool_calls": [call("add", a=1, b=23), call("add", a=4, b=56)]},
        {"role": "tool", "content": "24"},
        {"role": "tool", "content": "60"},
        {"role": "assistant", "content": "They are 24 and 60."},
    ],
}

#: Reasoning of which Qwen 3 writes only what follows the last question.
REASONING: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Is 91 prime?"},
        {"role": "assistant", "reasoning_content": "7 times 13 makes 91.", "content": "No, it is not."},
        {"role": "user", "content": "And 97?"},
        {"role": "assistant", "reasoning_content": "Not by 2, 3, 5 or 7.", "content": "Yes, it is prime."},
    ]
}
