"""The columns of a window of the data set."""

#: In place of an index: a window without anything to learn.
NO_WINDOW = -1

STUDENT_IDS, LOSS_MASK = "student_ids", "loss_mask"


def teacher_columns(name: str) -> tuple[str, str]:
    """The columns of a teacher's token ids and of its spans."""
    return f"{name}/ids", f"{name}/spans"


def starts_column(side: str) -> str:
    """The column of the places where the documents of a window begin, for a teacher, or for the student, ``""``."""
    return f"{side}/starts" if side else "student_starts"


def cached_column(teacher: str) -> str:
    """Where a window holds what is stored of its spans."""
    return f"{teacher}/cached"
