"""The registry of the explainers, by name, and the class that it shares with that of the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plugins.registry import Registry, T, validated


class MethodRegistry(Registry[T]):
    """Classes by name that have parameters of their own: explainers here, metrics in :mod:`tasks.metrics`.

    Parameters
    ----------
    kind, package, group, methods
        As for :class:`plugins.registry.Registry`.
    """

    def __init__(self, kind: str, package: str, group: str, methods: Sequence[str] = ()) -> None:
        super().__init__(kind, package, group, methods, ("name", "title", "needs", "Parameters"))

    def parameters(self, name: str, given: Mapping[str, Any]) -> Any:
        """The parameters of the class called ``name``, from values by key.

        Raises
        ------
        ValueError
            In one line: the class has no such parameter, or does not take the value.
        """
        cls: Any = self.get(name)
        return validated(cls.Parameters, given, f"{self.kind} {name}")

    def _complaint(self, cls: Any) -> str | None:
        if hasattr(cls.Parameters, "model_fields"):
            return None
        return f"{cls.__qualname__}.Parameters is not a subclass of explainers.base.Parameters"


explainers: MethodRegistry[Any] = MethodRegistry(
    "explainer", "explainers", "floodlit.explainers", methods=("describe", "explain")
)
register: Callable[[Any], Any] = explainers.register
