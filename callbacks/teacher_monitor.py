"""Logs the contribution of every teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl

from xtoken_pl.callbacks.charts import Charts, Monitor
from xtoken_pl.callbacks.shared import step_kind, step_kinds
from xtoken_pl.data.validation import validates
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.lightning_internals import is_accumulating


class TeacherMonitor(Monitor):
    """Logs the losses of every optimizer step, in total, by teacher, and by source of a mixture.

    Tags: ``train/loss``, ``train/ce``; if training steps run teachers (not at ``kd_weight: 0``), also ``train/kd`` and
    ``train/kd_scale``, and for each teacher

    - ``train/kd/NAME``: mean loss per span in nats;
    - ``train/alpha/NAME``: alpha; averaged over the student tokens in spans if it varies within a batch;
    - ``train/scale/NAME``: alpha times KD scale, the factor of the loss;
    - ``train/span_coverage/NAME``: share of the tokens that are in a span, in the sources that the teacher teaches on;
    - ``train/unmapped_mass/NAME``: student probability that the loss compares with no teacher token.

    A student with ``router_aux_loss_coef`` also has ``train/router_loss``.

    If ``data.train`` has several sources, for each of them

    - ``data/share/SOURCE``: share of the step's learned tokens that are from the source;
    - ``data/ce/SOURCE``: their mean cross-entropy, NaN in a step without any.

    These are the values of steps on the data. On-policy steps, which have no cross-entropy, log under ``rollouts/``
    instead of ``train/``, and ``rollouts/share/SOURCE`` instead of ``data/share/SOURCE``. In a run with both, each kind
    logs its last step since the log before.

    TensorBoard's custom scalars group them and the validation metrics in pages.
    """

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        kinds, pages = step_kinds(module), Charts()
        sources = list(dict.fromkeys(domain.source for domain in module.train_domains if domain.source))
        if "train" in kinds:
            pages |= _data_charts(list(module.trained_teachers), sources)
        if "rollouts" in kinds:
            pages["Rollouts"] = _rollout_charts(list(module.trained_teachers), sources)
        if validates(module.trainer):
            tags = [tag for tag, _ in module.validation_metrics.items()]
            named = {
                "bits per byte": "bits_per_byte",
                "CE": "ce",
                "KD by teacher": "kd",
                "same top token": "top1_agreement",
            }
            pages["Validation"] = {
                title: [f"val/{tag}" for tag in tags if name in tag.split("/")] for title, name in named.items()
            }
        return pages

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_accumulating(trainer):  # only the last batch of a step knows the means of the step
            return
        kind, scale = step_kind(outputs), outputs["kd_scale"]
        by_teacher = {
            "kd": outputs["teacher_kd"],
            "alpha": outputs["alpha"],
            "scale": {name: scale * alpha for name, alpha in outputs["alpha"].items()},
            "span_coverage": outputs["span_coverage"],
            "unmapped_mass": outputs["unmapped_mass"],
        }
        scalars = {
            f"{kind}/{tag}/{name}": value for tag, values in by_teacher.items() for name, value in values.items()
        }
        if kind == "rollouts":
            totals: Sequence[str] = ("kd",)
            by_source = {"rollouts/share": outputs["share"]}
        else:
            totals = ("ce", "kd", "kd_scale") if outputs["teacher_kd"] else ("ce",)
            by_source = {"data/share": outputs["share"], "data/ce": outputs["source_ce"]}
        scalars |= {f"{tag}/{name}": value for tag, values in by_source.items() for name, value in values.items()}
        totals = (*totals, *(["router_loss"] if "router_loss" in outputs else []))
        pl_module.log(f"{kind}/loss", outputs["total"], prog_bar=True)
        pl_module.log_dict(scalars | {f"{kind}/{tag}": outputs[tag] for tag in totals})


def _data_charts(teachers: Sequence[str], sources: Sequence[str]) -> Charts:
    """Charts of steps on the data."""
    distils = bool(teachers)
    return {
        "Losses": {
            "loss, CE and KD": ["train/loss", "train/ce", *["train/kd"] * distils],
            "KD scale": ["train/kd_scale"] * distils,
        },
        "Teachers": {
            "KD by teacher": _each("train/kd", teachers),
            "alpha by teacher": _each("train/alpha", teachers),
            "alpha x scale by teacher": _each("train/scale", teachers),
        },
        "Alignment": {
            "tokens in spans": _each("train/span_coverage", teachers),
            "student mass without a counterpart": _each("train/unmapped_mass", teachers),
        },
        "Data": {
            "share of the tokens": _each("data/share", sources),
            "CE by source": _each("data/ce", sources),
        },
    }


def _rollout_charts(teachers: Sequence[str], sources: Sequence[str]) -> dict[str, list[str]]:
    """Charts of on-policy steps, for one page."""
    return {
        "loss and KD": ["rollouts/loss", "rollouts/kd"],
        "KD by teacher": _each("rollouts/kd", teachers),
        "alpha by teacher": _each("rollouts/alpha", teachers),
        "alpha x scale by teacher": _each("rollouts/scale", teachers),
        "tokens in spans": _each("rollouts/span_coverage", teachers),
        "student mass without a counterpart": _each("rollouts/unmapped_mass", teachers),
        "share of the tokens": _each("rollouts/share", sources),
    }


def _each(tag: str, names: Sequence[str]) -> list[str]:
    return [f"{tag}/{name}" for name in names]
