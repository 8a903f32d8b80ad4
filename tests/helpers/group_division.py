"""What the slow reference of the byte-prefix KL reads, and the groups that it divides tokens into."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

#: ("lead", teacher token), ("token", student token), ("end", depth), ("child", depth, teacher token), ("others", 0) or
#: ("rest", 0).
Key = tuple[str, int] | tuple[str, int, int]
#: The teacher's mass of each group, and its student tokens.
ListedGroups = dict[Key, tuple[float, list[int]]]


@dataclass
class Text:
    """What a position reads: the teacher's tokens, its rows, and which of both may be used."""

    teacher_ids: Sequence[int]
    rows: Sequence[Sequence[float]]
    row_exists: Sequence[bool] | None
    kept: Sequence[Set[int]] | None

    def exists(self, row: int) -> bool:
        return row < len(self.teacher_ids) and (self.row_exists is None or self.row_exists[row])

    def is_kept(self, row: int, v: int) -> bool:
        """Whether a teacher token is known one by one."""
        return self.kept is None or v in self.kept[row]


@dataclass
class Division:
    """Groups of student tokens, and masses on their way to them, each with whether it is known one by one."""

    tokens: dict[Key, list[int]] = field(default_factory=dict)
    to_group: list[tuple[Key, float, bool]] = field(default_factory=list)
    to_token: list[tuple[int, float, bool]] = field(default_factory=list)  # to the group of a student token

    def scale(self, weight: float) -> None:
        self.to_group = [(key, weight * mass, is_known) for key, mass, is_known in self.to_group]
        self.to_token = [(s, weight * mass, is_known) for s, mass, is_known in self.to_token]

    def arrive(self) -> dict[Key, float]:
        """Sends everything to groups; the mass of each."""
        group_of = {s: key for key, group in self.tokens.items() for s in group}
        self.to_group += [(group_of[s], mass, is_known) for s, mass, is_known in self.to_token if s in group_of]
        self.to_token = []
        masses = dict.fromkeys(self.tokens, 0.0)
        for key, mass, _ in self.to_group:
            masses[key] += mass
        return masses
