"""Names of the data set's columns; each row is a window."""

#: Index of a window that has nothing to learn.
NO_WINDOW = -1

STUDENT_IDS, LOSS_MASK = "student_ids", "loss_mask"
#: Index of the window's domain among those of its split; added when a window is read, 0 where it is missing.
DOMAIN = "domain"


def teacher_columns(name: str) -> tuple[str, str]:
    """Columns of a teacher's token ids and of its spans."""
    return f"{name}/ids", f"{name}/spans"


def starts_column(side: str) -> str:
    """Column of the positions at which documents begin, for a teacher, given by name, or for the student, ``""``."""
    return f"{side}/starts" if side else "student_starts"


def cached_column(teacher: str) -> str:
    """Column of the cached teacher rows of a window's spans."""
    return f"{teacher}/cached"


#: Column of a window's prompt: whether it is a conversation's, and whether its beginning is left out; empty for none.
PROMPT = "prompt"


def prompt_column(side: str) -> str:
    """Column of the prompt's token ids, for a teacher, given by name, or for the student, ``""``."""
    return f"{side}/prompt_ids" if side else "prompt_ids"
