"""Students, teachers, their servers and adapters as plain specifications; weights are loaded when training starts."""

from xtoken_pl.specs.lora import LoRA
from xtoken_pl.specs.model_source import DType, ModelSource, Quantization, load_vocabulary
from xtoken_pl.specs.prompts import PromptSettings
from xtoken_pl.specs.server import Server
from xtoken_pl.specs.student import Student
from xtoken_pl.specs.teacher import AutoLoss, Teacher

__all__ = [
    "AutoLoss",
    "DType",
    "LoRA",
    "ModelSource",
    "PromptSettings",
    "Quantization",
    "Server",
    "Student",
    "Teacher",
    "load_vocabulary",
]
