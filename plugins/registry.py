"""Named plug-ins: explainers, metrics and kinds of datasets, each in a registry of its own."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from plugins.addresses import import_address
from plugins.reasons import first_line

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    Model = TypeVar("Model", bound=BaseModel)

T = TypeVar("T", bound=type)

_MOST_TOLD = 8  # complaints in one message
_LONGEST_KEY = 100  # characters of a key in a message
_LARGE = 10**30  # numbers beyond are not written out


class Registry(Generic[T]):
    """Classes by name.

    The modules of ``package`` register their classes when they are imported, which :meth:`get` does with the
    one module that it needs. Classes of other distributions are found through the entry point group
    ``group``, or by an address ``package.module:Name``.

    Parameters
    ----------
    kind
        What messages call one of the classes.
    package
        Name of the package whose modules register classes.
    group
        Name of the entry point group.
    methods
        Names of the methods that every class has.
    attributes
        Names of the other attributes that every class has.
    """

    written: ClassVar[str] = r"""\bname\b[^=\n]*=\s*["']{}["']"""  # how a module gives a class its name

    def __init__(
        self,
        kind: str,
        package: str,
        group: str,
        methods: Sequence[str] = (),
        attributes: Sequence[str] = ("name",),
    ) -> None:
        self.kind, self.package, self.group = kind, package, group
        self.methods, self.attributes = tuple(methods), tuple(attributes)
        self._classes: dict[str, T] = {}
        self._complete = False

    def register(self, cls: T) -> T:
        """Class decorator; a second class of the same name is refused."""
        name = self.name_of(cls)
        known = self._classes.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"two {self.kind}s are called {name!r}: {known.__module__}.{known.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}; rename one"
            )
        return cls

    def name_of(self, cls: T) -> str:
        """The name of a class of this registry."""
        return str(cls.name)  # type: ignore[attr-defined]

    def names(self) -> list[str]:
        """All registered names, sorted.

        Raises
        ------
        ValueError
            In one line that names the plug-in, each time, if one cannot be used; or two classes of one name.
        """
        self._load_all()
        return sorted(self._classes)

    def get(self, name: str) -> T:
        """The class called ``name``, or at the address ``package.module:Name``.

        Raises
        ------
        ValueError
            In one line: there is no such name, with those that are close; or what is there cannot be used.
        """
        if name not in self._classes and ":" in name:
            return self._checked(import_address(name, self.kind), f"{self.kind} {name!r}")
        for load in (self._load_module_of, self._load_plug_ins, self._load_all):
            if name in self._classes:
                break
            load(name)
        if name not in self._classes:
            raise ValueError(f"unknown {self.kind} {name!r}; {choices(name, self.names())}")
        return self._classes[name]

    def _modules(self) -> list[str]:
        path = importlib.import_module(self.package).__path__
        return [f"{self.package}.{module.name}" for module in pkgutil.iter_modules(path)]

    def _load_module_of(self, name: str) -> None:
        """Import the modules in whose text a class is called ``name``; none is imported to find them."""
        written = re.compile(self.written.format(re.escape(name)))
        for module in self._modules():
            loader: Any = getattr(find_spec(module), "loader", None)
            source = loader.get_source(module) if hasattr(loader, "get_source") else None
            if written.search(source or ""):
                importlib.import_module(module)

    def _load_plug_ins(self, name: str | None = None) -> None:
        """Register the classes of entry points, of those called ``name`` where it is given."""
        for point in entry_points(group=self.group):
            if name is None or point.name == name:
                found: Any = self._loaded(point)
                self._load_module_of(
                    self.name_of(found)
                )  # a plug-in never takes the name of a class of the package
                self.register(found)

    def _load_all(self, name: str | None = None) -> None:  # noqa: ARG002
        if self._complete:
            return
        for module in self._modules():
            importlib.import_module(module)
        self._load_plug_ins()
        self._complete = True  # only now, so that a broken plug-in is named the next time too

    def _loaded(self, point: EntryPoint) -> T:
        owner = "" if point.dist is None else f", of {point.dist.name} {point.dist.version}"
        what = f"{self.kind} plug-in {point.name!r} ({point.value}{owner})"
        try:
            found = point.load()
        except Exception as error:  # importing a foreign module may raise anything
            raise ValueError(
                f"cannot load the {what}: {type(error).__name__}: {first_line(error)}; repair or uninstall it"
            ) from error
        return self._checked(found, what)

    def _checked(self, found: Any, what: str) -> T:
        """``found``, if it is a class with all that the classes of this registry have."""
        if not isinstance(found, type):
            raise ValueError(f"cannot use the {what}: it is not a class but of type {type(found).__name__}")
        lacking = [key for key in self.attributes if not hasattr(found, key)]
        lacking += [method for method in self.methods if not callable(getattr(found, method, None))]
        if lacking:
            raise ValueError(
                f"cannot use the {what}: the class {found.__qualname__} has no {', '.join(lacking)}, which "
                f"every {self.kind} has"
            )
        wrong = self._complaint(found)
        if wrong is not None:
            raise ValueError(f"cannot use the {what}: {wrong}")
        return found  # type: ignore[return-value]

    def _complaint(self, cls: Any) -> str | None:  # noqa: ARG002
        """What is wrong with a class that has all attributes and methods; None if nothing is."""
        return None


def choices(wrong: str, known: Iterable[str], otherwise: str = "choose from ") -> str:
    """The end of a message about an unknown name: the known names that are close to it, else all of them."""
    known = list(known)
    plain = wrong.lower().replace("-", "_")
    close = get_close_matches(plain, known, n=5, cutoff=0.7)
    close += [name for name in known if plain and plain in name and name not in close]
    return f"close are {', '.join(close)}" if close else f"{otherwise}{', '.join(known)}"


def validated(model: type[Model], given: Mapping[str, Any], what: str) -> Model:
    """``model`` with the values ``given`` by key.

    Raises
    ------
    ValueError
        In one line that begins with ``what``: a key is unknown, or a value is out of range.
    """
    from pydantic import ValidationError  # here, so that the registry alone imports in no time

    known = list(model.model_fields)
    for key in given:
        if key not in known:
            key = key[:_LONGEST_KEY]  # noqa: PLW2901
            takes = choices(key, known, otherwise="it takes: ") if known else "it takes none"
            raise ValueError(f"{what} has no parameter {key!r}; {takes}")
    try:
        return model(**given)
    except ValidationError as error:
        raise ValueError(f"{what}: {complaints(error)}") from error


def complaints(error: ValidationError, unknown: str = "unknown key") -> str:
    """The errors of a validation as ``key: message`` on one line, such as ``explainers[0].name: ...``.

    Texts that were given are not part of the message, and numbers are.

    Parameters
    ----------
    unknown
        The message for a key that the model does not have.
    """
    told = []
    for problem in error.errors(include_url=False):
        words = unknown if problem["type"] == "extra_forbidden" else problem["msg"]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        key, words = key.removeprefix(".")[:_LONGEST_KEY], words.removeprefix("Value error, ")
        # Numbers are shown, and texts are not: a text may be a password.
        given = problem["input"]
        if isinstance(given, int | float) and problem["type"] not in {"extra_forbidden", "value_error"}:
            words = f"{words}, not {given if abs(given) < _LARGE else 'a larger number'}"
        told.append(f"{key}: {words}" if key else words)
    more = f"; and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
    return "; ".join(told[:_MOST_TOLD]) + more
