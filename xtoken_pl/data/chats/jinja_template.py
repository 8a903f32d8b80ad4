"""Applies a side's chat template to conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import cached_property, partial

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from xtoken_pl.data.chats.conversations import Conversation
from xtoken_pl.data.chats.rendered import RejectedError, RenderedText, UnrenderableError
from xtoken_pl.data.chats.tool_calls import ToolCall
from xtoken_pl.data.chats.units import Messages, messages_of
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# Some templates write today's date; Llama 3's falls back to this one when it has no clock.
_DATE = datetime(2024, 7, 26)
# Placeholder for an answer: a private use character, which no template writes or trims.
_ANSWER = "\ue001"
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        vocabulary: Vocabulary of the tokenizer.
        side: ``student`` or ``teacher 'NAME'``, for messages.

    Raises:
        UserError: If the tokenizer has no chat template.
    """

    def __init__(self, vocabulary: CanonicalVocabulary, side: str) -> None:
        self.tokenizer = vocabulary.tokenizer
        self.side = side
        if not self.tokenizer.chat_template:
            raise UserError(
                f"conversations need a chat template on every side, and the tokenizer of the {side} "
                f"({vocabulary.name!r}) has none; name a Jinja file as its chat_template, or give a model whose "
                "tokenizer has one"
            )

    @property
    def description(self) -> str:
        """The template, as part of a fingerprint."""
        return json.dumps(self.tokenizer.chat_template, sort_keys=True)

    def apply(self, conversation: Conversation, *, prompt: bool) -> str:
        """Returns the text of a conversation, with the generation prompt or without.

        Raises:
            UnrenderableError: If the template rejects the conversation.
        """
        return self._apply(conversation, messages_of(conversation.turns, lambda unit: unit.text), prompt=prompt)

    @cached_property
    def _dated(self) -> str:
        """The template with a fixed date instead of today's: windows are cached, so they must not depend on the day."""
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:  # several named templates, and none of them is the default
            raise UserError(
                f"the tokenizer of the {self.side} must have a default chat template; name a Jinja file as its "
                f"chat_template. Reason: {error}"
            ) from error
        template = _TODAY.sub(lambda found: repr(_DATE.strftime(found[2])), template)
        if "strftime_now(" in template:
            raise UserError(
                f"a chat template must write the same text every day, but the template of the {self.side} asks for "
                f"today's date in a format that is not a literal; give the {self.side} another chat_template"
            )
        return template

    def write(
        self, conversation: Conversation, special: re.Pattern[str] | None, *, is_prompt: bool = False
    ) -> RenderedText:
        """Writes a conversation.

        Args:
            conversation: The conversation.
            special: Pattern of the special tokens; None if there are none.
            is_prompt: Whether the assistant is to answer: the template's generation prompt follows the conversation.

        Raises:
            UnrenderableError: If the template rejects the conversation, changes what is said, or ignores the tools.
            UserError: If the template is not valid.
        """
        try:
            apply = self._apply_prompt if is_prompt else self._apply
            written = self._written(conversation, special, apply)
            if conversation.tools and self._ignores_tools(conversation, written, apply):
                raise UnrenderableError("ignores the tools")
        except UnrenderableError as error:
            roles = [turn.role for turn in conversation.turns]
            raise UnrenderableError(
                f"a chat template must write every message and every tool call once, in order and unchanged, and the "
                f"tools, but the template of the {self.side} {error}, in {conversation}, with the roles {roles}; give "
                f"the {self.side} another chat_template, or remove such conversations"
            ) from error.__cause__
        return written

    def _written(
        self, conversation: Conversation, special: re.Pattern[str] | None, apply: Callable[..., str]
    ) -> RenderedText:
        render = partial(apply, conversation)
        try:
            return RenderedText(conversation, render, special, as_text=self._prints_arguments)
        except RejectedError:
            # Some templates (DeepSeek's) take the arguments of calls as JSON text.
            if not any(turn.tool_calls for turn in conversation.turns):
                raise
            with suppress(UnrenderableError):
                return RenderedText(conversation, render, special, as_text=True)
            raise

    @cached_property
    def _prints_arguments(self) -> bool:
        """Whether the template prints the arguments of calls as they are, so that objects would not be JSON."""
        mark = "\ue000"  # Python prints its code.
        call = ToolCall("f", {"a": mark}).as_message()
        messages: Messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        with suppress(UnrenderableError):
            return repr(mark)[1:-1] in self._apply(Conversation(()), messages)
        return False

    def _ignores_tools(self, conversation: Conversation, written: RenderedText, apply: Callable[..., str]) -> bool:
        try:
            return apply(Conversation(conversation.turns), written.marked) == written.marked_text
        except UnrenderableError:
            return False

    def _apply_prompt(self, conversation: Conversation, messages: Messages, *, prompt: bool = True) -> str:
        if not prompt or self._has_prompt:
            return self._apply(conversation, messages, prompt=prompt)
        answered = self._apply(conversation, [*messages, {"role": "assistant", "content": _ANSWER}])
        return answered.partition(_ANSWER)[0]

    @cached_property
    def _has_prompt(self) -> bool:
        """Whether the template has a generation prompt; if not, what it writes before an answer takes its place."""
        question: Messages = [{"role": "user", "content": "a"}]
        for before in ([], [{"role": "system", "content": "a"}]):  # some templates need a message of the system
            with suppress(UnrenderableError):
                opened, closed = (self._apply(Conversation(()), before + question, prompt=own) for own in (True, False))
                return opened != closed
        return True

    def _apply(self, conversation: Conversation, messages: Messages, *, prompt: bool = False) -> str:
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                messages,
                tools=list(conversation.tools) or None,
                add_generation_prompt=prompt,
                tokenize=False,
                chat_template=self._dated,
            )
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template of the {self.side} is not valid Jinja: {error.message}, in line {error.lineno}; "
                "fix it, or give another chat_template"
            ) from error
        except (TemplateError, TypeError) as error:  # TypeError: the template adds a string and None, say
            raise RejectedError(f"rejects the messages ({str(error).rstrip('.')})") from error
        return rendered
