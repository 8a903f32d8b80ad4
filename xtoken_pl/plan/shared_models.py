"""Models of the teachers that run in this process; teachers that load the same weights share them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xtoken_pl.plan import terms
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.specs import Teacher
from xtoken_pl.teachers.local import groups_of


@dataclass(frozen=True, eq=False)
class SharedModel:
    """The model of one teacher, or of several that share its weights.

    Attributes:
        names: Names of the teachers.
        source: Specification of the first one; what it says of the weights holds for all.
        skeleton: The model, with the adapter of the first one.
        others: The same model with the adapter of each of the others.
    """

    names: tuple[str, ...]
    source: Teacher
    skeleton: Skeleton
    others: tuple[Skeleton, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Size of the weights with the adapters of all."""
        return terms.weight_bytes(self.skeleton) + sum(other.adapter_bytes for other in self.others)

    @property
    def layer_bytes(self) -> list[int]:
        """Size of the weights of each layer with the adapters of all, which FSDP gathers together."""
        adapters = (other.adapter_layer_bytes for other in self.others)
        return [sum(parts) for parts in zip(self.skeleton.layer_bytes, *adapters, strict=True)]

    @property
    def root_bytes(self) -> int:
        """Size of the weights outside the layers with the adapters of all."""
        outside = (other.adapter_bytes - sum(other.adapter_layer_bytes) for other in self.others)
        return self.skeleton.root_bytes + sum(outside)

    @property
    def setting(self) -> str:
        """What configures the teachers: ``model.teachers.NAME``, or ``model.teachers.{NAME, NAME}``."""
        return f"model.teachers.{self.names[0] if len(self.names) == 1 else '{' + ', '.join(self.names) + '}'}"

    @property
    def label(self) -> str:
        """``teacher NAME``, or ``teachers NAME, NAME``."""
        return f"teacher{'s' * (len(self.names) > 1)} {', '.join(self.names)}"


def shared_models(teachers: Mapping[str, Teacher], skeletons: Mapping[str, Skeleton]) -> dict[str, SharedModel]:
    """Groups teachers by their weights, as :func:`xtoken_pl.teachers.local.place_teachers` does.

    Args:
        teachers: Specifications by name.
        skeletons: Models by name, of the teachers that run in this process.

    Returns:
        The model that each teacher runs, by its name.
    """
    models: dict[str, SharedModel] = {}
    for first, *others in groups_of({name: teachers[name] for name in skeletons}):
        with_others = tuple(skeletons[name] for name in others)
        model = SharedModel((first, *others), teachers[first], skeletons[first], with_others)
        models |= dict.fromkeys(model.names, model)
    return models
