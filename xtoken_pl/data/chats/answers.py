"""How a chat template surrounds the assistant's answer, read from what it writes around an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xtoken_pl.data.chats.conversations import Conversation, Turn
from xtoken_pl.data.chats.jinja_template import ChatTemplate
from xtoken_pl.data.chats.parts import SpecialTokens
from xtoken_pl.data.chats.rendered import UnrenderableError
from xtoken_pl.tokenization import CanonicalVocabulary

if TYPE_CHECKING:
    from xtoken_pl.data.chats.renderer import ChatRenderer

_SYSTEM = Turn("system", "Be brief.", is_learned=False)
_QUESTION = Turn("user", "A question?", is_learned=False)
_ANSWER = Turn("assistant", "An answer.", is_learned=True)


@dataclass(frozen=True)
class AnswerFormat:
    """How a side writes an answer behind its prompt.

    Attributes:
        lead: Space between the prompt and the answer, which most tokenizers merge into the answer's first token; ``""``
            if there is none.
        is_first: Whether the answer is encoded like the start of a text, with the space that some tokenizers put there.
        end_ids: Token ids from the end of an answer to the special token that ends it, inclusive; empty if nothing
            ends it.
    """

    lead: str = ""
    is_first: bool = False
    end_ids: tuple[int, ...] = ()

    @property
    def stop_id(self) -> int | None:
        """Id of the special token that ends an answer; None if nothing ends it."""
        return self.end_ids[-1] if self.end_ids else None

    @classmethod
    def for_text(cls, vocabulary: CanonicalVocabulary) -> AnswerFormat:
        """Returns the format of a text that continues another one, which eos ends."""
        eos = vocabulary.roles.get("eos")
        return cls() if eos is None else cls(end_ids=(eos,))

    @classmethod
    def from_template(cls, renderer: ChatRenderer, template: ChatTemplate, special: SpecialTokens) -> AnswerFormat:
        """Reads the format of a chat template from an example.

        Args:
            renderer: Renderer with the template.
            template: The template.
            special: Special tokens that it may write.

        Raises:
            UnrenderableError: If the template rejects the example, with and without a message of the system.
        """
        before = _accepted_start(renderer)
        opening = template.write(Conversation(before), special.pattern, is_prompt=True).text
        text = opening.removesuffix(" ")
        return cls(opening[len(text) :], _is_first(text, special), _end_ids(renderer, before))


def _accepted_start(renderer: ChatRenderer) -> tuple[Turn, ...]:
    """Returns the messages before an answer, with one of the system only if the template needs it."""
    try:
        renderer.write(Conversation((_QUESTION, _ANSWER)))
    except UnrenderableError as error:
        try:
            renderer.write(Conversation((_SYSTEM, _QUESTION, _ANSWER)))
        except UnrenderableError:
            raise error from None
        return (_SYSTEM, _QUESTION)
    return (_QUESTION,)


def _is_first(text: str, special: SpecialTokens) -> bool:
    """Whether what follows a text of the template is encoded like the start of a text."""
    is_first = True
    for piece, token in special.cut(text):
        is_first = is_first and not piece
        is_first = is_first if token is None else special.add_space
    return is_first


def _end_ids(renderer: ChatRenderer, before: tuple[Turn, ...]) -> tuple[int, ...]:
    """Token ids behind an answer, up to the next special token.

    Some templates write none behind the last answer, but before the next message.
    """
    for after in ((), (_QUESTION,)):
        (chat,) = renderer.render([Conversation((*before, _ANSWER, *after))])
        answer = chat.turns[len(before)]
        if answer.end is not None:
            return tuple(chat.ids[answer.content[1] : answer.end + 1].tolist())
    return ()
