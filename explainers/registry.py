"""Named plug-ins: explainers here, metrics in :mod:`tasks.metrics`, through one class."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Generic, Protocol, TypeVar


class Named(Protocol):
    """Anything with a name to be found under."""

    name: Any


T = TypeVar("T", bound=type)


class Registry(Generic[T]):
    """Classes by name.

    The modules of ``package`` register themselves when first asked for; third parties are found through
    the entry point group ``group`` or named in the job as ``package.module:Name``.
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._classes: dict[str, T] = {}
        self._loaded = False

    def register(self, cls: T) -> T:
        """Class decorator; a second class of the same name is refused."""
        name = cls.name  # type: ignore[attr-defined]
        known = self._classes.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"two {self.kind}s are called {name!r}: {known.__module__}.{known.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}; rename one"
            )
        return cls

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._load()
        return sorted(self._classes)

    def get(self, name: str) -> T:
        """The class called ``name``, or at the address ``package.module:Name``.

        Raises
        ------
        ValueError
            With the known names, if there is none.
        """
        self._load()
        if name in self._classes:
            return self._classes[name]
        if ":" in name:
            found: T = import_address(name, self.kind)
            return found
        raise ValueError(f"unknown {self.kind} {name!r}; choose from {', '.join(self.names())}")

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            self.register(point.load())


def import_address(address: str, kind: str) -> Any:
    """The object at ``package.module:Name``; a wrong address is a ValueError that says what is wrong."""
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot load {kind} {address!r}: {error}") from error


explainers: Registry[Any] = Registry("explainer", "explainers", "floodlit.explainers")
register: Callable[[Any], Any] = explainers.register
