"""Logs the contribution of every teacher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl

from xtoken_pl.callbacks.charts import Charts, Monitor
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

    If ``data.train`` has several sources, for each of them

    - ``data/share/SOURCE``: share of the step's learned tokens that are from the source;
    - ``data/ce/SOURCE``: their mean cross-entropy, NaN in a step without any.

    TensorBoard's custom scalars group them and the validation metrics in pages.
    """

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        trained = module.trained_teachers
        distils = bool(trained)

        def each(tag: str, names: Iterable[str] = trained) -> list[str]:
            return [f"{tag}/{name}" for name in names]

        pages = {
            "Losses": {
                "loss, CE and KD": ["train/loss", "train/ce", *["train/kd"] * distils],
                "KD scale": ["train/kd_scale"] * distils,
            },
            "Teachers": {
                "KD by teacher": each("train/kd"),
                "alpha by teacher": each("train/alpha"),
                "alpha x scale by teacher": each("train/scale"),
            },
            "Alignment": {
                "tokens in spans": each("train/span_coverage"),
                "student mass without a counterpart": each("train/unmapped_mass"),
            },
        }
        if sources := list(dict.fromkeys(domain.source for domain in module.train_domains if domain.source)):
            pages["Data"] = {
                "share of the tokens": each("data/share", sources),
                "CE by source": each("data/ce", sources),
            }
        if validates(module.trainer):
            tags = [tag for tag, _ in module.validation_metrics.items()]
            kinds = {
                "bits per byte": "bits_per_byte",
                "CE": "ce",
                "KD by teacher": "kd",
                "same top token": "top1_agreement",
            }
            pages["Validation"] = {
                title: [f"val/{tag}" for tag in tags if kind in tag.split("/")] for title, kind in kinds.items()
            }
        return pages

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_accumulating(trainer):  # only the last batch of a step knows the means of the step
            return
        scale = outputs["kd_scale"]
        by_teacher = {
            "kd": outputs["teacher_kd"],
            "alpha": outputs["alpha"],
            "scale": {name: scale * alpha for name, alpha in outputs["alpha"].items()},
            "span_coverage": outputs["span_coverage"],
            "unmapped_mass": outputs["unmapped_mass"],
        }
        scalars = {f"train/{tag}/{name}": value for tag, values in by_teacher.items() for name, value in values.items()}
        by_source = {"share": outputs["share"], "ce": outputs["source_ce"]}
        scalars |= {f"data/{tag}/{name}": value for tag, values in by_source.items() for name, value in values.items()}
        pl_module.log("train/loss", outputs["total"], prog_bar=True)
        totals = ("ce", "kd", "kd_scale") if outputs["teacher_kd"] else ("ce",)
        pl_module.log_dict(scalars | {f"train/{tag}": outputs[tag] for tag in totals})
