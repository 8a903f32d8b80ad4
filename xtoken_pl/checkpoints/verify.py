"""All checks of a checkpoint before it is used: :func:`verify`, readable from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from xtoken_pl.checkpoints.identity import SOURCES_KEY, DataIdentity, RunIdentity, holds_adapter, stored_identity
from xtoken_pl.checkpoints.io import check_whole, is_remote, without_tensors
from xtoken_pl.checkpoints.served_weights import check_served_weights, is_of_server
from xtoken_pl.projection import LearnedProjection
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import reason_of

Stage = Literal["fit", "validate", "test", "predict", "export"]

#: Key of the data module's state in the argument of :func:`verify`.
DATA_KEY = "data"

#: Names for which Lightning finds the checkpoint.
_NAMED = ("best", "hpc", "registry")
_SUPPORT = ".support"
_NEW_RUN = "start a new run from its exported student"
_SAME_INPUT = f"give what the run that wrote it was given, or {_NEW_RUN}"


@dataclass(frozen=True)
class Run:
    """The known parts of the run that reads a checkpoint; a part that is None is not compared.

    Attributes:
        paths: Checkpoint path of every process, in the order of ranks.
        student: Student, see :func:`xtoken_pl.checkpoints.identity.describe_student`.
        module: Module that loads the checkpoint's ``state_dict``.
        identity: Teachers and settings.
        data: Training data and their order.
        data_settings: Settings of the training data that may change.
    """

    paths: Sequence[str | None] | None = None
    student: Mapping[str, Any] | None = None
    module: nn.Module | None = None
    identity: RunIdentity | None = None
    data: DataIdentity | None = None
    data_settings: Mapping[str, str] | None = None


def verify(checkpoint: str | Path | Mapping[str, Any] | None, run: Run, stage: Stage) -> None:
    """Refuses a checkpoint that does not belong to a run.

    It is called as soon as a part of the run is known: by the command line before texts are read, by the module when
    its processes are connected and when it loads its weights, by the data module when it loads its state, and by
    ``export``.

    Args:
        checkpoint: Path or content of the checkpoint; None to compare only the paths of processes. The content may be
            incomplete: the state of the data module, under ``data``, is compared on its own.
        run: Known parts of the run.
        stage: ``fit`` resumes training; ``validate``, ``test`` and ``predict`` use the student; ``export`` writes it.

    Raises:
        UserError: With the first difference, and the ways out.
    """
    resumes = stage == "fit"

    # All processes read one checkpoint.
    if run.paths is not None:
        _check_one_path(run.paths)

    # The file exists, is whole, and was written by a run; to resume it must hold the states of the optimizers.
    if isinstance(checkpoint, str | Path):
        if is_remote(checkpoint) or str(checkpoint) in _NAMED:
            return  # Lightning finds it later
        checkpoint = _read(Path(checkpoint), stage)
    if checkpoint is None:
        return
    saved = stored_identity(checkpoint)

    # The student has the same tokenizer and, if only an adapter is stored, the same adapter on the same weights.
    if saved is not None and run.student is not None:
        _check_student(saved["student"], run.student, stage)

    # The stored weights are those that the run loads. A sharded run has loaded them before it can be asked.
    state = checkpoint.get("state_dict")
    if state is not None and run.module is not None and run.student is not None:
        _check_projections(state, run.module, resumes=resumes)
        _check_adapter(state, run.module, has_adapter="adapter" in run.student)

    # To resume, the teachers are the same; other settings may change, and are logged.
    if resumes and run.identity is not None:
        if saved is None:
            rank_zero_warn("the checkpoint does not name its teachers: they are not compared with those of this run")
        else:
            _check_teachers(saved["teachers"], run.identity.teachers)
            _log_changes(saved["settings"], run.identity.settings)

    # To resume, the windows and their order are the same; other settings may change, and are logged.
    if resumes and run.data is not None:
        _check_data(checkpoint[DATA_KEY]["identity"], run.data)
        before = checkpoint[DATA_KEY].get("settings", {})
        _log_changes(before, dict.fromkeys(before) | dict(run.data_settings or {}))


# Processes and files --------------------------------------------------------------------------------------------------


def _check_one_path(paths: Sequence[str | None]) -> None:
    if len(set(paths)) > 1:
        found = ", ".join(f"{path} (process {rank})" for rank, path in enumerate(paths))
        raise UserError(
            f"all processes must use the same checkpoint, but they found {found}; give a path that all of them can read"
        )


def _read(path: Path, stage: Stage) -> Mapping[str, Any] | None:
    """Reads a checkpoint without tensors; returns None for ``export``, which reads all of it later."""
    if not path.exists():
        raise UserError(
            f"the path must be a checkpoint, and there is none at {str(path)!r}; check the path"
            f"{', or give `last`' if stage == 'fit' else ''}"
        )
    check_whole(path)
    if stage == "export":
        return None
    try:
        content = without_tensors(path)
    except Exception as error:  # a pickle of anything raises nearly anything
        raise UserError(
            f"a checkpoint must be one that a run wrote, and {str(path)!r} cannot be read ({reason_of(error)}); give "
            "another path"
        ) from error
    if "pytorch-lightning_version" not in content:
        held = ", ".join(sorted(map(str, content))[:5]) or "nothing"
        raise UserError(
            f"a checkpoint must be one that a run wrote, and {str(path)!r} is none (it holds {held}); give another "
            "path, or start from weights with --model.student.model FOLDER"
        )
    if stage == "fit" and "lr_schedulers" not in content:
        raise UserError(
            f"to resume, a checkpoint must hold the states of optimizers, and {str(path)!r} holds weights alone; give "
            "another one, or write its student with `python -m xtoken_pl export` and start from that folder"
        )
    return content


# Student and weights --------------------------------------------------------------------------------------------------


def _check_student(saved: Mapping[str, Any], ours: Mapping[str, Any], stage: Stage) -> None:
    way_out = "give the student of the run: --student.model" if stage == "export" else _SAME_INPUT
    if saved["tokenizer"] != ours["tokenizer"]:
        raise UserError(
            f"the student of the checkpoint has another tokenizer than {ours['model']!r} ({saved['tokenizer']} there, "
            f"{ours['tokenizer']} here); {way_out}"
        )
    adapter: Mapping[str, Any] = saved.get("adapter", {})
    our_adapter: Mapping[str, Any] = ours.get("adapter", {})
    if bool(adapter) != bool(our_adapter):
        raise UserError(f"{_held(has_adapter=bool(our_adapter))}; {way_out}")
    for part, value in our_adapter.items():
        if adapter[part] != value:
            why = f" (it was trained on other weights than those of {ours['model']!r})" if part == "base" else ""
            raise UserError(
                f"the student's adapter has another {part} than in the checkpoint: {adapter[part]} there, {value} "
                f"here{why}; {way_out}"
            )


def _check_projections(state: Mapping[str, Any], module: nn.Module, *, resumes: bool) -> None:
    learned, saved = learned_projections(module), stored_projections(state)
    if missing := sorted(learned.keys() - saved):
        raise UserError(
            f"learn_projection is set, but the checkpoint holds no learned projection of {_teachers_of(missing)}; "
            f"leave learn_projection out as in the run that wrote it, or {_NEW_RUN}"
        )
    if resumes and (unused := sorted(saved - learned.keys())):
        raise UserError(
            f"the checkpoint holds a learned projection of {_teachers_of(unused)}, which this run does not learn; set "
            f"learn_projection as in the run that wrote it, or {_NEW_RUN} and projection"
        )
    for name in learned.keys() & saved:
        for key, ours in learned[name].state_dict().items():
            theirs = state[f"{name}.{key}"]
            if theirs.shape != ours.shape or (not ours.is_floating_point() and not torch.equal(theirs, ours.cpu())):
                raise UserError(
                    f"the learned projection of {_teachers_of([name])} in the checkpoint belongs to another W; give "
                    "the tokenizers, and the `projection`, of the run that wrote it"
                )


def learned_projections(module: nn.Module) -> dict[str, LearnedProjection]:
    """Returns the learned projections of a module, by the prefix of their weights."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LearnedProjection)}


def stored_projections(state: Mapping[str, Any]) -> set[str]:
    """Returns the prefixes of the learned projections in a ``state_dict``."""
    return {key.removesuffix(_SUPPORT) for key in state if key.endswith(_SUPPORT)}


def _check_adapter(state: Mapping[str, Any], module: nn.Module, *, has_adapter: bool) -> None:
    if holds_adapter(state) != has_adapter:
        raise UserError(f"{_held(has_adapter=has_adapter)}; {_SAME_INPUT}")
    if not has_adapter:
        return  # Lightning compares the names of weights
    expected = module.state_dict().keys()
    for names, where in ((expected - state.keys(), "here"), (state.keys() - expected, "in the checkpoint")):
        if names:
            raise UserError(
                f"the weights of the checkpoint are not those that this run trains: {len(names)} are {where} only, "
                f"{min(names)!r} among them; {_SAME_INPUT}"
            )


def _held(*, has_adapter: bool) -> str:
    there, here = ("all weights", "an adapter") if has_adapter else ("an adapter", "all weights")
    return f"the checkpoint holds {there} of a student, and this run trains {here}"


# Teachers, settings, data ---------------------------------------------------------------------------------------------


def _check_teachers(
    saved: Mapping[str, Mapping[str, str | None]], ours: Mapping[str, Mapping[str, str | None]]
) -> None:
    for names, how in ((saved.keys() - ours.keys(), "with"), (ours.keys() - saved.keys(), "without")):
        if names:
            raise UserError(
                f"the checkpoint was written {how} teacher {', '.join(map(repr, sorted(names)))}, unlike this run; "
                f"{_SAME_INPUT}"
            )
    for name, teacher in ours.items():
        before = saved[name]
        if before["learned"] != teacher["learned"]:
            where = "in the checkpoint" if before["learned"] == "yes" else "in this run"
            raise UserError(f"the projection of teacher {name!r} is learned {where} only; {_SAME_INPUT}")
        for part in ("weights", "tokenizer", "projection"):
            if part == "weights" and is_of_server(before[part], teacher[part]):
                check_served_weights(name, before[part], teacher[part])
            elif before[part] != teacher[part]:
                raise UserError(
                    f"teacher {name!r} has another {part} than in the checkpoint: {_described(before, part)} there, "
                    f"{_described(teacher, part)} here; {_SAME_INPUT}"
                )


def _log_changes(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for setting, value in ours.items():
        if (before := saved.get(setting)) != value:
            rank_zero_info(f"resuming with another {setting}: {value}, {before} in the checkpoint")


def _check_data(saved: DataIdentity, ours: DataIdentity) -> None:
    changed = [name for name in saved | ours if saved.get(name) != ours.get(name)]
    if SOURCES_KEY in changed:  # what is said of a source that only one of the two has follows from this
        changed = [name for name in changed if name == SOURCES_KEY or {name} <= saved.keys() & ours.keys()]
    if changed:
        described = (
            f"{name} ({saved.get(name, 'nothing')} in the checkpoint, {ours.get(name, 'nothing')} here)"
            for name in changed
        )
        raise UserError(
            f"to resume in the middle of the data, these must not change: {', '.join(described)}. "
            "Restore the former values, or start a new run from the exported student (--model.student.model FOLDER)"
        )


def _described(teacher: Mapping[str, str | None], part: str) -> str:
    revision = f" at revision {teacher['revision']!r}" if teacher["revision"] else ""
    return f"{teacher[part]} of {teacher['model']!r}{revision}"


def _teachers_of(prefixes: list[str]) -> str:
    """``losses.NAME.learned`` -> teacher 'NAME'."""
    return ", ".join(f"teacher {prefix.split('.')[1]!r}" for prefix in prefixes)
