"""What must stay the same for a run to go on in the middle of its data."""

from __future__ import annotations

import hashlib

import numpy as np
from datasets import Dataset

from xtoken_pl.batch import STUDENT_IDS
from xtoken_pl.utilities.errors import UserError

#: What a checkpoint says of the data: by setting, in the user's words.
DataIdentity = dict[str, int | str]

_NUM_SAMPLES = 64


def windows_fingerprint(windows: Dataset, windower_fingerprint: str) -> str:
    """Names windows by how they were made and by samples of their tokens, wherever they are stored."""
    digest = hashlib.sha256(f"{windower_fingerprint} {len(windows)}".encode())
    for index in sorted({(len(windows) - 1) * place // (_NUM_SAMPLES - 1) for place in range(_NUM_SAMPLES)}):
        digest.update(np.asarray(windows[index][STUDENT_IDS], dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def check_same_data(saved: DataIdentity, ours: DataIdentity) -> None:
    """Refuses to go on where other data, or another order, would follow.

    Raises:
        UserError: Naming each setting that differs, its values, and both ways out.
    """
    changed = [
        f"{name} ({saved.get(name, 'nothing')} in the checkpoint, {ours.get(name, 'nothing')} here)"
        for name in [*saved, *(name for name in ours if name not in saved)]
        if saved.get(name) != ours.get(name)
    ]
    if changed:
        raise UserError(
            f"to go on in the middle of the data, a run must keep its {', its '.join(changed)}. "
            "Set what it was, or start a new run from the exported student (--model.student.model FOLDER)"
        )
