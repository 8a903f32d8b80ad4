"""Toy languages small enough to list every text: what the teacher's probabilities are is counted, not computed.

A toy tokenizer cuts a text leftmost-longest. A toy teacher gives random probabilities to the next token, of those
after which the sequence is still the one that its tokenizer makes.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

from reference_byte_prefix import BytePrefixReference

EOS = b""


def strings(alphabet: str, *lengths: int) -> list[bytes]:
    """All strings over the alphabet of the given lengths."""
    return ["".join(letters).encode() for length in lengths for letters in product(alphabet, repeat=length)]


class Toy:
    """A vocabulary with eos, in an order of its own, and its leftmost-longest cut."""

    def __init__(self, texts: list[bytes], seed: int = 0) -> None:
        self.texts = [*texts, EOS]
        random.Random(seed).shuffle(self.texts)
        self.ids = {text: token for token, text in enumerate(self.texts)}
        self.cut = lru_cache(None)(self._cut)

    def _cut(self, text: bytes) -> tuple[bytes, ...]:
        """The text's tokens; none if it cannot be written."""
        if not text:
            return ()
        first = max((token for token in self.texts if token and text.startswith(token)), key=len, default=EOS)
        rest = self.cut(text[len(first) :]) if first else ()
        return (first, *rest) if first and b"".join((first, *rest)) == text else ()

    def encode(self, text: bytes) -> list[int]:
        return [self.ids[token] for token in (*self.cut(text), EOS)]


@dataclass(frozen=True)
class Language:
    """All texts of at most `longest` bytes, with the probabilities of a random teacher."""

    student: Toy
    teacher: Toy
    longest: int
    seed: int = 0

    def row(self, prefix: tuple[bytes, ...]) -> dict[bytes, float]:
        """The teacher's distribution after these tokens."""
        allowed = [EOS]
        for token in self.teacher.texts:
            text = b"".join((*prefix, token))
            if token and len(text) <= self.longest and self.teacher.cut(text) == (*prefix, token):
                allowed.append(token)
        weights = {v: random.Random(f"{self.seed} {prefix} {v!r}").random() ** 2 + 0.01 for v in allowed}
        return {v: weight / sum(weights.values()) for v, weight in weights.items()}

    @cached_property
    def probabilities(self) -> dict[bytes, float]:
        """Every text's probability."""
        found: dict[bytes, float] = {}

        def extend(prefix: tuple[bytes, ...], probability: float) -> None:
            for token, p in self.row(prefix).items():
                if token == EOS:
                    found[b"".join(prefix)] = probability * p
                else:
                    extend((*prefix, token), probability * p)

        extend((), 1.0)
        return found

    def rows(self, text: bytes) -> list[list[float]]:
        """The teacher's rows along a text, over its ids."""
        tokens = self.teacher.cut(text)
        return [[self.row(tokens[:j]).get(v, 0.0) for v in self.teacher.texts] for j in range(len(tokens) + 1)]

    @cached_property
    def reference(self) -> BytePrefixReference:
        return BytePrefixReference(
            self.student.texts,
            self.teacher.texts,
            lambda text: tuple(self.teacher.ids[token] for token in self.teacher.cut(text)),
            {self.student.ids[EOS]: self.teacher.ids[EOS]},
        )


@dataclass(frozen=True)
class Position:
    """A student token of a text, and where it stands in the teacher's tokens."""

    language: Language
    text: bytes
    index: int

    @property
    def offset(self) -> int:
        return len(b"".join(self.language.student.cut(self.text)[: self.index]))

    @property
    def teacher_tokens(self) -> tuple[bytes, ...]:
        return (*self.language.teacher.cut(self.text), EOS)

    @property
    def first(self) -> int:
        """Index of the teacher token that covers the offset."""
        ends = [len(b"".join(self.teacher_tokens[: j + 1])) for j in range(len(self.teacher_tokens) - 1)]
        return sum(end <= self.offset for end in ends)

    @property
    def there(self) -> bytes:
        """The bytes of that teacher token that stand before the offset."""
        return self.text[len(b"".join(self.teacher_tokens[: self.first])) : self.offset]

    def counted(self, *, knows_past: bool = True, knows_end: bool = False) -> dict[bytes, float]:
        """Probability of each student token, over the texts that share bytes and teacher tokens before the position.

        The teacher's last token before it may go on in some of them. Inside a teacher token it goes on in all of them,
        unless the bytes that are there are a token, too. The student has the same tokens before the position in all of
        them; without ``knows_past`` it need not have, and its token is the first of the cut from the position on. With
        ``knows_end`` the teacher's token has ended or goes on in all of them as it does in this text.
        """
        found: Counter[bytes] = Counter()
        for text, probability in self._alternatives():
            if knows_end and not self._ends_alike(text):
                continue
            if not knows_past:
                found[(*self.language.student.cut(text[self.offset :]), EOS)[0]] += probability
                continue
            tokens = (*self.language.student.cut(text), EOS)
            if tokens[: self.index] == self.student_tokens:
                found[tokens[self.index]] += probability
        total = sum(found.values())
        return {token: probability / total for token, probability in found.items()}

    @property
    def student_tokens(self) -> tuple[bytes, ...]:
        return self.language.student.cut(self.text)[: self.index]

    def _alternatives(self) -> Iterator[tuple[bytes, float]]:
        """The texts that share the teacher's tokens and bytes before the position, and their probabilities."""
        before, there = self.teacher_tokens[: self.first], self.there
        if before and not there:
            before, there = before[:-1], before[-1]
        for text, probability in self.language.probabilities.items():
            tokens = (*self.language.teacher.cut(text), EOS)
            if tokens[: len(before)] != before or len(tokens) == len(before):
                continue
            covering = tokens[len(before)]
            if covering.startswith(there):
                yield text, probability

    def _ends_alike(self, text: bytes) -> bool:
        """Whether the teacher's token before the position ends there, or goes on, as it does in the position's text."""
        tokens = (*self.language.teacher.cut(text), EOS)
        if self.there:
            return tokens[self.first] != self.there
        return tokens[: self.first] == self.teacher_tokens[: self.first]

    def _joins(self, v: bytes, there: bytes) -> bool:
        """Whether the student would have written its last token and the rest of a teacher token as one token."""
        last = self.student_tokens[-1] if self.index else EOS
        whole = last + v[len(there) :]
        if not last or v in (EOS, there) or whole not in self.language.student.texts:
            return False
        if there:
            return len(last) <= len(there)
        return len(self.language.teacher.cut(whole)) > 1 and self.language.teacher.cut(whole)[-1] == v

    def approximations(self) -> set[str]:
        """Why the masses need not be the probabilities here; empty where they must be.

        All of these are about a teacher token v that the teacher may write and does not write in this text:

        - "lead": v begins the teacher's writing of a longer student token, and is no student token with what stands
          before it, so that the student may stop before v ends;
        - "ending": v follows t_1…t_d and begins nothing, but a student token ends inside v;
        - "inside": v goes on behind the position, and what is left of it begins a longer student token;
        - "ended": the same, and the student token that begins what is left of v may also follow where the teacher's
          token has ended;
        - "past": the student would not have ended its last token before v, and only the text as a whole says so.
        """
        student, teacher = self.language.student, self.language.teacher
        there, path = self.there, self.teacher_tokens[self.first :]
        rows = [self.language.row(self.teacher_tokens[:j]) for j in range(len(self.teacher_tokens))]
        found = set()
        for v in rows[self.first]:
            left = v[len(there) :]
            if v in (path[0], EOS) or not v.startswith(there) or v == there:
                continue
            longer = [s for s in student.texts if s.startswith(left) and s != left]
            if not there and left not in student.texts and any(teacher.cut(s)[:1] == (v,) for s in longer):
                found.add("lead")
        for text, _ in self._alternatives():
            tokens = (*teacher.cut(text), EOS)
            goes_on = bool(self.first and not there and tokens[self.first - 1] != self.teacher_tokens[self.first - 1])
            v, begun = tokens[self.first - goes_on], self.teacher_tokens[self.first - 1] if goes_on else there
            if student.cut(text)[: self.index] != self.student_tokens:
                if not self._joins(v, begun):
                    found.add("past")
            elif begun and v != begun:
                left = v[len(begun) :]
                (first, *_) = student.cut(left)
                if (goes_on or v != path[0]) and any(s.startswith(left) and s != left for s in student.texts):
                    found.add("inside")
                if there and there in teacher.texts and there + first not in teacher.texts:
                    found.add("ended")
        if path[0] == EOS:
            return found
        written = path[0][len(there) :]
        for depth in range(1, len(path)):
            # The student tokens that go on after t_1…t_depth, and the teacher's writing of what they go on with.
            below: dict[bytes, tuple[bytes, ...]] = {}
            for s in student.texts:
                if s.startswith(written) and s != written:
                    tokens = (path[0], *teacher.cut(s[len(path[0]) - len(there) :])) if there else teacher.cut(s)
                    if tokens[:depth] == path[:depth]:
                        below[s] = tokens[depth:]
            if not below:
                break
            for v in rows[self.first + depth]:
                if v in (path[depth], EOS):
                    continue
                if any(rest[0] == v for rest in below.values()):
                    if written + v not in student.texts:
                        found.add("lead")
                elif any(len(written) < len(s) and (written + v).startswith(s) for s in student.texts):
                    found.add("ending")
            written += path[depth]
        return found
