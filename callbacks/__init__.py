"""Lightning callbacks, one behaviour each. They import the package; the package never imports them."""

from xtoken_pl.callbacks.alignment_monitor import AlignmentMonitor
from xtoken_pl.callbacks.dynamic_loss_scaling import DynamicLossScaling
from xtoken_pl.callbacks.eval_harness import EvalHarness
from xtoken_pl.callbacks.hf_export import HFExport
from xtoken_pl.callbacks.numeral_monitor import NumeralMonitor
from xtoken_pl.callbacks.picture_monitor import PictureMonitor
from xtoken_pl.callbacks.projection_export import ProjectionExport
from xtoken_pl.callbacks.projection_monitor import ProjectionMonitor
from xtoken_pl.callbacks.rollout_monitor import RolloutMonitor
from xtoken_pl.callbacks.span_kind_monitor import SpanKindMonitor
from xtoken_pl.callbacks.teacher_monitor import TeacherMonitor
from xtoken_pl.callbacks.throughput_monitor import ThroughputMonitor

__all__ = [
    "AlignmentMonitor",
    "DynamicLossScaling",
    "EvalHarness",
    "HFExport",
    "NumeralMonitor",
    "PictureMonitor",
    "ProjectionExport",
    "ProjectionMonitor",
    "RolloutMonitor",
    "SpanKindMonitor",
    "TeacherMonitor",
    "ThroughputMonitor",
]
