"""The runs that are compared, and the packages that are not run, with the reason. Needs the standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Run:
    """A way to train the student.

    Attributes:
        label: Name in the table.
        side: Package that trains.
        loss: Class of this package's loss, empty for cross-entropy alone; or ``uld`` or ``hybrid`` of TRL.
        merge: TRL's ``uld_token_merge_strategy``.
        ours: Name of the run of this package that computes the same, to compare the time of steps with.
    """

    label: str
    side: Literal["ours", "trl"]
    loss: str
    merge: Literal["", "observed", "bayesian"] = ""
    ours: str = ""


RUNS = {
    "trl_uld": Run("TRL ULD, `observed` (default)", "trl", "uld", "observed", "uld"),
    "trl_uld_bayesian": Run("TRL ULD, `bayesian`", "trl", "uld", "bayesian", "uld"),
    "trl_gold": Run("TRL hybrid (GOLD), `observed` (default)", "trl", "hybrid", "observed", "gold"),
    "trl_gold_bayesian": Run("TRL hybrid (GOLD), `bayesian`", "trl", "hybrid", "bayesian", "gold"),
    "uld": Run("ULD", "ours", "ULD"),
    "gold": Run("GOLD", "ours", "GOLD"),
    "p_kl": Run("P-KL", "ours", "ProjectionKL"),
    "byte_prefix_kl": Run("byte-prefix KL", "ours", "BytePrefixKL"),
    "ce": Run("cross-entropy alone", "ours", ""),
}

#: Runs of TRL whose groups are compared; the loss does not change them.
ALIGNED = ("trl_uld", "trl_uld_bayesian")

#: Packages that are not run, with the reason.
LEFT_OUT = {
    "NeMo RL": "has the paper's losses. The package of this name (0.0.0) is a placeholder; the source needs Python "
    "3.13, Ray, NVSHMEM and a CUDA build of torch, that is GPUs. Its published recipes take eight.",
    "KDFlow": "distils across tokenizers, and is in no package index. Its teacher runs in SGLang under Ray, its "
    "student in FSDP2 with FlashAttention: GPUs.",
    "tokenkit": "has ALM, and is in no package index (the package of this name counts tokens). The source needs "
    "Python 3.10, JAX 0.5 and forks that are installed from GitHub.",
    "DistillKit": "is in no package index. It reads the text with one tokenizer and resizes the student's vocabulary "
    "to it, so that it cannot train this pair of models.",
    "llm-distil": "0.1.0 can be installed, and has one tokenizer, the student's, for both models.",
    "oumi": "starts TRL's GOLD trainer, which is measured here.",
}
