"""The strategies of a Trainer that these modules can be trained with; importing this file registers ``fsdp2``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import BitsandbytesPrecision, HalfPrecision, MixedPrecision
from lightning.pytorch.plugins.precision.precision import Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, StrategyRegistry

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import parallel_sizes, set_parallel_sizes
from xtoken_pl.utilities.words import did_you_mean

_SHARDED = "--trainer.strategy fsdp2 shards the student and every teacher"
_WAYS_OUT = f"{_SHARDED}; --trainer.strategy ddp copies them to each device"
_UNSUPPORTED = {
    FSDPStrategy: "Lightning's first FSDP flattens the weights of a model, so that the losses cannot read its head",
    DeepSpeedStrategy: "DeepSpeed takes gradients and checkpoints over, so that the losses cannot read the head of a "
    "partitioned model, and runs cannot resume exactly",
}


class FSDP2Strategy(ModelParallelStrategy):
    """``Trainer(strategy="fsdp2")``: shards the models over all processes, and writes checkpoints of one file.

    It is Lightning's ``ModelParallelStrategy`` with ``tensor_parallel_size=1``, a ``data_parallel_size`` of devices x
    nodes, and ``save_distributed_checkpoint=False``.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        set_parallel_sizes(self, self.num_processes * self.num_nodes, 1)
        super().setup_environment()


StrategyRegistry.register("fsdp2", FSDP2Strategy, "FSDP2 over all processes, checkpoints of one file", override=True)


def check_strategy_choice(strategy: Any) -> None:
    """Refuses a strategy of a configuration that a run cannot use; the trainer need not exist.

    Args:
        strategy: Its registered name, a configuration with its ``class_path``, or the strategy.

    Raises:
        UserError: If there is no such name, if it takes models apart in another way than FSDP2, or if it trains in
            copies of the process.
    """
    kind, name, options = _described(strategy)
    names = ["auto", *StrategyRegistry]
    if isinstance(strategy, str) and kind is None and name.lower() not in names:
        near = did_you_mean(name, names, "auto, ddp and fsdp2 are some")
        raise UserError(f"trainer.strategy must be a known name, or a mapping with a class_path, got {name!r}{near}")
    for unsupported, reason in _UNSUPPORTED.items():
        if isinstance(kind, type) and issubclass(kind, unsupported):
            raise UserError(f"trainer.strategy {name!r} is not supported: {reason}. {_WAYS_OUT}")
    if (method := options.get("start_method") or "popen") != "popen":
        raise UserError(
            f"trainer.strategy {name!r} trains in copies of the process (start method {method!r}), and the trained "
            "student ends with them; --trainer.strategy ddp starts the run again instead, once for each device"
        )


def check_strategy(trainer: pl.Trainer) -> None:
    """Refuses a strategy that these modules cannot be trained with, and sizes and precisions that do not fit it.

    Raises:
        UserError: With the settings that work.
    """
    strategy, precision = trainer.strategy, trainer.precision_plugin
    check_strategy_choice(strategy)
    if isinstance(precision, BitsandbytesPrecision):
        raise UserError(
            "BitsandbytesPrecision would replace the layers of a student that is being trained; remove the plugin, and "
            "set model.student.quantization with an adapter"
        )
    if isinstance(strategy, FSDP2Strategy):
        _check_precision(precision)
    elif isinstance(strategy, ModelParallelStrategy):
        _check_sizes(strategy)


def _described(strategy: Any) -> tuple[Any, str, Mapping[str, Any]]:
    """The class of a strategy (None if it is not known here), its name for messages, and its options if configured."""
    if isinstance(strategy, str) and strategy.lower() in StrategyRegistry:
        known = StrategyRegistry[strategy.lower()]
        return known["strategy"], strategy, known["init_params"]
    if (path := strategy if isinstance(strategy, str) else getattr(strategy, "class_path", None)) is None:
        return type(strategy), type(strategy).__name__, {}
    # Compared by name: to create or import the class may need a package or a device that is missing.
    kind = next((kind for kind in _UNSUPPORTED if kind.__name__ == path.rpartition(".")[2]), None)
    return kind, path, {} if isinstance(strategy, str) else strategy.get("init_args") or {}


def _check_sizes(strategy: ModelParallelStrategy) -> None:
    data, tensor = parallel_sizes(strategy)
    num_processes = strategy.num_processes * strategy.num_nodes
    if data * tensor != num_processes or strategy.num_processes % tensor != 0:  # a group lies within a node
        raise UserError(
            "ModelParallelStrategy must have a data_parallel_size times a tensor_parallel_size of all processes "
            "(devices x nodes), and a tensor_parallel_size that divides the devices of a node; got "
            f"{data} and {tensor} for {num_processes} processes. {_SHARDED}, with the sizes that fit"
        )


def _check_precision(precision: Precision) -> None:
    """Checks what Lightning checks if the strategy is an object, and not if it is a name."""
    is_mixed = isinstance(precision, MixedPrecision) and precision.scaler is None
    if not (type(precision) is Precision or isinstance(precision, HalfPrecision) or is_mixed):
        raise UserError(
            f"trainer.precision must be 32-true, bf16-mixed, bf16-true or 16-true with the strategy fsdp2, got "
            f"{precision.precision!r}; change one of them"
        )
