"""The verbs of the command line. To add one, add a line here and a file with a function ``run(arguments)``."""

from __future__ import annotations

from typing import NamedTuple

from xtoken_pl.utilities.errors import UsageError
from xtoken_pl.utilities.words import did_you_mean

PROGRAM = "python -m xtoken_pl"


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        module: File in this directory that runs the verb; imported only then.
        description: Description in one line.
    """

    module: str
    description: str


VERBS = {
    "fit": Verb("fit", "Train a student on the data and teachers of a configuration."),
    "validate": Verb("fit", "Measure a checkpoint on the validation texts."),
    "test": Verb("fit", "Measure a checkpoint on the test texts."),
    "plan": Verb("plan", "Estimate how much memory a run needs on each GPU, without loading weights."),
    "cache": Verb("cache", "Store the outputs of a teacher that its loss needs, for all windows of a run."),
    "inspect": Verb("inspect", "Show a text or a window of a run's data as the student and its teachers see it."),
    "project": Verb("project", "Build the projection matrix W between two tokenizers."),
    "prefix_map": Verb(
        "prefix_map", "Build the prefix map between two tokenizers, which BytePrefixKL, BPM and ESCD read."
    ),
    "audit": Verb("audit", "Show what a student can learn from a teacher, and which loss suits the pair."),
    "export": Verb("export", "Write the student of a checkpoint as a Hugging Face directory."),
    "convert": Verb("convert", "Write a GGUF file as a model directory, with the original's tokenizer."),
    "prepare": Verb("prepare", "Write the teachers, texts and student of the quickstart."),
    "dashboard": Verb("dashboard", "Draw the newest run's TensorBoard charts or images as a PNG file."),
}


def overview() -> str:
    """Lists all verbs with their descriptions."""
    lines = [f"  {name:<12}{verb.description}" for name, verb in VERBS.items()]
    return "\n".join(["verbs:", *lines, "", f"`{PROGRAM} VERB --help` lists the options of a verb."])


def choose_verb(arguments: list[str]) -> str:
    """Returns the verb of a command line.

    Raises:
        UsageError: If the first argument is not a verb.
    """
    if not arguments:
        raise UsageError("a verb must come first, got nothing; choose one of these:", overview())
    verb = arguments[0]
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS) or "; choose one of these:"
        raise UsageError(f"the first argument must be a verb, got {verb!r}{hint}", overview())
    return verb
