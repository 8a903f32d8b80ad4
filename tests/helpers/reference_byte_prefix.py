r"""Slow reference of the byte-prefix KL, written from its definition alone.

Plain loops over tokens in Python floats. At every student position the student's vocabulary is cut into groups, and
every group gets the mass that the teacher's rows along the observed text give it:

    L = D(Q, P̃) - log M, Q_g the teacher's mass, P_g = Σ_{s∈g} p_S(s), M = Σ_g P_g over the groups that have mass,
    P̃_g = P_g / M, in nats. D is KL(Q ‖ P̃), the forward form, so that L = Σ_g Q_g·log(Q_g / P_g); or KL(P̃ ‖ Q), or
    ½ KL(Q ‖ m) + ½ KL(P̃ ‖ m) with m = (Q + P̃) / 2.

Before a position stand bytes b of a teacher token, which may have ended with b or may be longer. At a boundary it has
ended: its row q_0 gives q_0(b) to all that follows, and q_0(v) to the rest of every longer v. Inside a token it is
longer: q_1 gives q_1(b), where b is a token, to all student tokens that get nothing else.

τ(s) is the teacher's writing of student token s, φ(x) the longest student token that is a byte prefix of x. The
teacher's tokens from the one that covers the position on are t_1, t_2, …; q_d is the row that predicts t_d;
M_d = q_1(t_1)···q_d(t_d).
"""

import math
from collections.abc import Callable, Sequence, Set

from group_division import Division, Key, ListedGroups, Text

#: A student token below t_1, and what the teacher writes of it after t_1.
Member = tuple[int, tuple[int, ...]]


class BytePrefixReference:
    """Groups and loss of single positions.

    Args:
        student_bytes: Bytes of every student token, empty for special tokens and unused ids.
        teacher_bytes: The same of the teacher.
        tau: The teacher's writing of a byte string inside a text; empty where it cannot write it.
        special: Student special id -> teacher special id of the same role.
        byte_pieces: Student ids that are written only where no other token has their bytes.
    """

    def __init__(
        self,
        student_bytes: Sequence[bytes],
        teacher_bytes: Sequence[bytes],
        tau: Callable[[bytes], tuple[int, ...]],
        special: dict[int, int],
        byte_pieces: Set[int] = frozenset(),
    ) -> None:
        self.student_bytes = list(student_bytes)
        self.teacher_bytes = list(teacher_bytes)
        self.tau = tau
        self.special = special
        self.written: list[tuple[int, ...]] = []
        self.leads: dict[int, list[int]] = {}  # teacher token -> student tokens that it leads
        for s, text in enumerate(self.student_bytes):
            if s in special:
                self.written.append((special[s],))
            else:
                self.written.append(tuple(tau(text)) if text else ())
            if self.written[s]:
                self.leads.setdefault(self.written[s][0], []).append(s)
        last_first = sorted(range(len(self.written)), key=lambda s: (s in byte_pieces, s), reverse=True)
        self.by_bytes = {self.student_bytes[s]: s for s in last_first if self.student_bytes[s] and s not in special}
        self.longest = max(map(len, self.by_bytes), default=0)

    def phi(self, text: bytes) -> int | None:
        """The longest student token that is a prefix of the text, or the text itself; None if there is none."""
        for length in range(min(len(text), self.longest), 0, -1):
            if text[:length] in self.by_bytes:
                return self.by_bytes[text[:length]]
        return None

    def groups(
        self,
        position: int,
        student_ids: Sequence[int],
        teacher_ids: Sequence[int],
        rows: Sequence[Sequence[float]],
        row_exists: Sequence[bool] | None = None,
        kept: Sequence[Set[int]] | None = None,
        behind: bytes = b"",
        normalized: bool = True,
    ) -> ListedGroups:
        """The groups of student tokens at a position, and the teacher's mass of each; the masses sum to 1 or all are 0.

        There is none where the teacher cannot write the observed token.
        A student token is in one group at most, those that the teacher cannot write may be in none. Groups without
        mass are given too.

        Args:
            position: Index of the student token.
            student_ids: The text as student tokens.
            teacher_ids: The same bytes as teacher tokens.
            rows: ``rows[j]`` is the teacher's distribution that predicts ``teacher_ids[j]``.
            row_exists: Which rows may be used besides that of t_1; all of them without it.
            kept: The teacher tokens of every row that are known one by one, the observed one among them. The groups
                that have mass, but none of such a token, become one; without it all stay.
            behind: The student's token before the text.
            normalized: Whether the masses sum to 1; without it, inside a teacher token, to that of its bytes so far.
        """
        observed = student_ids[position]
        if not self.written[observed]:
            return {}  # what the teacher cannot write is not learned from it
        text = Text(teacher_ids, rows, row_exists, kept)
        offset = sum(_symbols(self.student_bytes[s]) for s in student_ids[:position])
        first, start = 0, 0  # of the teacher token that covers the offset
        while start + _symbols(self.teacher_bytes[teacher_ids[first]]) <= offset:
            start += _symbols(self.teacher_bytes[teacher_ids[first]])
            first += 1
        there = offset - start
        before = self.student_bytes[student_ids[position - 1]] if position else behind

        division = Division(self._undivided(bool(there)))
        self._leave_at_once(division, text, first, there, before)
        self._follow_path(division, text, first, there, observed)
        if not there and first and text.exists(first - 1):  # all this if the token before has ended
            division.scale(rows[first - 1][teacher_ids[first - 1]])
            for v, s in self.longer_tokens(self.teacher_bytes[teacher_ids[first - 1]], before):
                division.to_token.append((s, rows[first - 1][v], text.is_kept(first - 1, v)))
        masses = division.arrive()
        if there:
            self._end_inside(division, masses, text, first, there)
        total = 1.0 if there and not normalized else sum(masses[key] for key in division.tokens)
        groups = {key: (masses[key] / total if total else 0.0, tokens) for key, tokens in division.tokens.items()}
        if kept is None:
            return groups
        known = {key for key, _, is_known in division.to_group if is_known}
        rest = [groups.pop(key) for key in division.tokens if key not in known and masses[key] > 0]
        if rest:
            groups["rest", 0] = sum(mass for mass, _ in rest), [s for _, group in rest for s in group]
        return groups

    def _undivided(self, inside: bool) -> dict[Key, list[int]]:
        """The groups before anything is divided: by leading token, inside a teacher token single ones."""
        tokens: dict[Key, list[int]] = {}
        for s in range(len(self.student_bytes)):
            if inside:
                tokens["token", s] = [s]
            elif self.written[s]:
                tokens.setdefault(("lead", self.written[s][0]), []).append(s)
        return tokens

    def _leave_at_once(self, division: Division, text: Text, first: int, there: int, before: bytes) -> None:
        """Masses of teacher tokens other than t_1."""
        t_1, q_1 = text.teacher_ids[first], text.rows[first]
        impossible = self._impossible(before, self.teacher_bytes[t_1][:there])
        if t_1 in impossible:
            impossible = set()  # the text is not the student's own writing
        for v, spelling in enumerate(self.teacher_bytes):
            if v == t_1 or v in impossible:
                continue
            if not there and v in self.leads:
                division.to_group.append((("lead", v), q_1[v], text.is_kept(first, v)))
                continue
            if there and not (len(spelling) > there and spelling[:there] == self.teacher_bytes[t_1][:there]):
                continue
            target = self.phi(spelling[there:])
            if target is not None:
                division.to_token.append((target, q_1[v], text.is_kept(first, v)))

    def _follow_path(self, division: Division, text: Text, first: int, there: int, observed: int) -> None:
        """Divides the student tokens that begin with t_1 along the text, and sends the mass of t_1 to them."""
        t_1 = text.teacher_ids[first]
        mass, spelling = text.rows[first][t_1], self.teacher_bytes[t_1][there:]  # M_d, y_d
        node = self._members(t_1, there)
        if not any(rest for _, rest in node) or not text.exists(first + 1):
            division.to_token.append((observed, mass, True))
            return
        division.tokens.pop(("lead", t_1), None)  # the members leave their groups
        for s, _ in node:
            division.tokens.pop(("token", s), None)
        depth, descends = 1, True
        while descends:
            q, following = text.rows[first + depth], text.teacher_ids[first + depth]
            children: dict[int, list[Member]] = {}
            for s, rest in node:
                if len(rest) < depth:
                    division.tokens.setdefault(("end", depth), []).append(s)
                else:
                    children.setdefault(rest[depth - 1], []).append((s, rest))
            residual = 1.0
            for v in {*children, following}:
                residual -= q[v]
            ending = self.phi(spelling)
            others = range(len(q)) if text.kept is None else text.kept[first + depth]
            is_known = any(v not in children and v != following for v in others)
            division.to_token.append((observed if ending is None else ending, mass * max(residual, 0.0), is_known))
            below = children.get(following, [])
            descends = any(len(rest) > depth for _, rest in below) and text.exists(first + depth + 1)
            for v, child in children.items():
                if v == following and descends:
                    continue
                division.tokens["child", depth, v] = [s for s, _ in child]
                if v != following:
                    division.to_group.append((("child", depth, v), mass * q[v], text.is_kept(first + depth, v)))
            mass *= q[following]
            spelling += self.teacher_bytes[following]
            node, depth = below, depth + 1
        division.to_token.append((observed, mass, True))

    def _end_inside(self, division: Division, masses: dict[Key, float], text: Text, first: int, there: int) -> None:
        """Gives the mass of teacher tokens that end at the position to all student tokens that have none."""
        bytes_so_far = self.teacher_bytes[text.teacher_ids[first]][:there]
        ended = [v for v, spelling in enumerate(self.teacher_bytes) if spelling == bytes_so_far]
        others = [s for s in range(len(self.written)) if masses.get(("token", s)) == 0 and self.written[s]]
        if not ended or not others:
            return
        tokens = division.tokens
        division.tokens = {key: group for key, group in tokens.items() if key[0] != "token" or masses[key]}
        division.tokens["others", 0] = others
        masses["others", 0] = math.fsum(text.rows[first][v] for v in ended)
        division.to_group += [(("others", 0), text.rows[first][v], text.is_kept(first, v)) for v in ended]

    def _impossible(self, before: bytes, there: bytes) -> set[int]:
        """Teacher tokens with which the student would have written its last token, `before`, as one token."""
        found: set[int] = set()
        for v, text in enumerate(self.teacher_bytes):
            whole = self.by_bytes.get(before + text[len(there) :], -1)
            if not before or whole < 0 or len(text) == len(there) or not text.startswith(there):
                continue
            # Without bytes of its own there, v must be what the teacher writes last of the longer token.
            written = self.written[whole]
            if len(before) <= len(there) if there else len(written) > 1 and written[-1] == v:
                found.add(v)
        return found

    def longer_tokens(self, text: bytes, before: bytes) -> list[tuple[int, int]]:
        """The teacher tokens that begin with one and are longer, and the student token that gets the mass of each."""
        found: list[tuple[int, int]] = []
        impossible = self._impossible(before, text) if text else set()
        for v, longer in enumerate(self.teacher_bytes):
            if text and longer.startswith(text) and longer != text and v not in impossible:
                target = self.phi(longer[len(text) :])
                found += [] if target is None else [(v, target)]
        return found

    def _members(self, t_1: int, there: int) -> list[Member]:
        """The student tokens that begin with t_1, of which `there` bytes are written already, and what follows it."""
        if not there:
            return [(s, self.written[s][1:]) for s in self.leads.get(t_1, [])]
        left = self.teacher_bytes[t_1][there:]
        members: list[Member] = []
        for s in range(len(self.student_bytes)):
            text = self.student_bytes[s]
            if s in self.special or not text.startswith(left):
                continue
            rest = tuple(self.tau(text[len(left) :])) if len(text) > len(left) else ()
            if rest or len(text) == len(left):
                members.append((s, rest))
        return members

    def loss(
        self,
        position: int,
        student_ids: Sequence[int],
        teacher_ids: Sequence[int],
        rows: Sequence[Sequence[float]],
        student_probs: Sequence[float],
        row_exists: Sequence[bool] | None = None,
        divergence: str = "forward",
    ) -> float:
        """The divergence over the groups that have mass, in nats; 0 where none has."""
        groups = self.groups(position, student_ids, teacher_ids, rows, row_exists)
        return divergence_of(groups, student_probs, divergence)


def divergence_of(groups: ListedGroups, student_probs: Sequence[float], divergence: str = "forward") -> float:
    """The divergence over the groups that have mass, in nats; 0 where none has."""
    pairs = [(mass, math.fsum(student_probs[s] for s in tokens)) for mass, tokens in groups.values() if mass > 0]
    if divergence == "forward":
        return sum(mass * math.log(mass / ours) if ours > 0 else math.inf for mass, ours in pairs)
    covered = math.fsum(ours for _, ours in pairs)
    if not pairs or not covered:
        return math.inf if pairs else 0.0
    total = -math.log(covered)
    for mass, ours in pairs:
        share = ours / covered
        if divergence == "reverse":
            total += share * math.log(share / mass) if share > 0 else 0.0
        else:
            assert divergence == "jensen_shannon"
            middle = (mass + share) / 2
            total += mass * math.log(mass / middle) / 2
            total += share * math.log(share / middle) / 2 if share > 0 else 0.0
    return total


def _symbols(token: bytes) -> int:
    """Length of a token in a text: its bytes, 1 for a special token."""
    return len(token) or 1
