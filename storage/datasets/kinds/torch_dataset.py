"""A map-style dataset that a callable of the user's own makes."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, field_validator

from plugins.addresses import import_callable
from storage.datasets.dataset import Dataset
from storage.datasets.map_style import MapStyle
from storage.datasets.reading import RGB, Bands, Reading
from storage.datasets.spec import DatasetSpec, register
from storage.errors import LONGEST, one_line
from storage.files import sha256_of_file


@register
class TorchDataset(DatasetSpec):
    """A map-style PyTorch dataset that a callable of your own returns.

    It has ``__len__`` and ``__getitem__``. An item is an image; an image and its label; or a dict with the
    key ``image`` and any of ``id``, ``label``, ``labels``, ``boxes`` and ``mask``. The callable may also be
    in a file: ``file.py:callable``.
    """

    shown_as: ClassVar[str] = "package.module:callable"

    kind: Annotated[str, Field(pattern="^.+:.+$")]
    arguments: dict[str, Any] | None = Field(
        None, description="keyword arguments with which the callable is called"
    )

    @field_validator("arguments")
    @classmethod
    def _arguments_are_kept_in_json(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        # Workers read them from the run's record, which would hold the text of a date.
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(f"{one_line(error, LONGEST)}; write dates and times as texts") from error
        return value

    def __hash__(self) -> int:
        return hash(json.dumps(self.model_dump(mode="json"), sort_keys=True))

    def with_paths(self, change: Callable[[Path], Path]) -> Self:
        """The same table with the file of the callable replaced by what ``change`` makes of it."""
        path, _, name = self.kind.rpartition(":")
        return self.model_copy(update={"kind": f"{change(Path(path))}:{name}"}) if _is_file(path) else self

    def open(self, bands: Bands = RGB) -> Dataset:
        """Call the callable, and open the dataset that it returns."""
        path, _, name = self.kind.rpartition(":")
        if _is_file(path) and not Path(path).is_file():
            raise ValueError(f"dataset.kind: there is no file {path}")
        try:
            made = import_callable(self.kind)
        except ValueError as error:
            raise ValueError(f"dataset.kind: {error}") from error
        if not callable(made):
            raise ValueError(f"dataset.kind: {self.kind} is no callable but a {type(made).__name__}")
        try:
            data = made(**(self.arguments or {}))
        except (Exception, SystemExit) as error:  # foreign code may raise anything
            told = f"{type(error).__name__}: {one_line(error, LONGEST)}"
            raise ValueError(f"dataset.kind: {self.kind} raised {told}") from error
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise ValueError(
                f"dataset.kind: {self.kind} returned a {type(data).__name__}, and no map-style dataset, "
                "which has __len__ and __getitem__"
            )
        # Like torchvision's own loaders, which turn nothing: what a dataset gives is taken as it is.
        how, origin = Reading(exif="ignore", bands=bands), [_code(path, made), name, self.arguments]
        return MapStyle(data, f"{Path(path).name}:{name}", how, self.limit, origin).dataset()


def _is_file(path: str) -> bool:
    return path.endswith(".py")


def _code(path: str, made: Callable[..., Any]) -> list[str]:
    """Return the hashes of the file that the address names and of the one that holds the callable."""
    files = {path if _is_file(path) else getattr(importlib.import_module(path), "__file__", None)}
    try:
        files.add(inspect.getsourcefile(inspect.unwrap(made)))
    except TypeError:  # an object that is called, or a function without a source
        files.add(inspect.getsourcefile(type(made)) if type(made).__module__ != "builtins" else None)
    return sorted(sha256_of_file(Path(file)) for file in files if file is not None and Path(file).is_file())
