"""The job's table ``[dataset]``, and what a kind of dataset is.

A kind of dataset is one class of keys in one file, which registers itself::

    from storage.datasets.spec import DatasetSpec, register

    @register
    class Stripes(DatasetSpec):
        \"""Images of stripes, for tests.\"""

        kind: Literal["stripes"] = "stripes"
        path: Place = Field(description="the folder of the stripes")
        width: int | None = Field(None, ge=1, le=100, description="width of a stripe in pixels")

        def open(self, bands: Bands = RGB) -> Dataset:
            ...

The file lies in ``storage/datasets/kinds``, or belongs to another distribution that names the class in the
entry point group ``floodlit.datasets``. Everything else follows from the class: the job's keys and their
messages, Prefect's form, ``floodlit datasets`` and the reference in ``docs/job.md``.

- The docstring begins with a sentence about the kind, and each key has a description.
- A key that may be left out has the default None, so that a later key does not change what a run is.
- Numbers have a largest value. Values can be hashed: a list of the job file becomes a tuple
  (``Field(strict=False)``).
- A key of the type ``Place``, or a tuple of them, is a path; ``open`` gets it as an absolute one, or as an
  address on S3. :func:`storage.datasets.dataset.existing` refuses one that is not there.
- ``limit`` and ``numbering`` are keys of every kind; ``open`` uses the first with
  :func:`storage.datasets.dataset.spread`.
- A kind whose items are image files is a subclass of :class:`ImageFilesSpec`, which has their keys and
  ``reading``, and ends in :func:`storage.datasets.image_files.of_files`.
- ``open`` lists the samples and decodes none, if it can. It raises ValueError in one line that begins with
  the key, e.g. ``dataset.path: ...``. Libraries that only this kind needs are imported inside it.
- A kind that has to pass over large files to list its samples, or to parse one for long, is a
  :class:`storage.datasets.index.Indexed`: the run keeps what the pass found.
- It runs in the process of the command and again on every worker, and gives the same samples in the same
  order there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from PIL import ImageColor
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from plugins.registry import Registry
from storage.datasets.reading import RGB, Bands, Reading

if TYPE_CHECKING:
    from storage.datasets.dataset import Dataset

_LONGEST_KEY = 100  # characters of a key in a message
# The first kinds shared one table. Their runs recorded its keys, given or not, and the hash of a run is made
# from them.
_FIRST_KINDS = frozenset({"folder", "csv", "torchvision", "digits", "text", "tensors"})
_FIRST_KEYS = (
    *("kind", "path", "images", "column", "name", "split", "seed", "boxes", "mask_values", "mask_ignore"),
    *("exif", "background", "range", "depth", "limit", "numbering"),
)

_Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
# A list in the job file becomes a tuple, since the table must be hashable.
DicomWindow = (
    Annotated[tuple[_Number, Annotated[_Number, Field(ge=1)]], Field(strict=False)] | Literal["file", "full"]
)
_Range = Annotated[tuple[_Number, _Number], Field(strict=False)]


class DatasetSpec(BaseModel):
    """The job's table ``[dataset]``: the kind of a dataset, its place and the part that is used.

    Each kind is a subclass. To validate a table as a DatasetSpec gives an object of the class of its kind.

    Attributes
    ----------
    modality
        What the items are.
    scanned
        The keys of folders in which every file is read as an item, so that no run can lie there.
    shown_as
        What the kind is called where its key ``kind`` takes more than one value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    modality: ClassVar[Literal["image", "text", "tensor"]] = "image"
    scanned: ClassVar[tuple[str, ...]] = ()
    shown_as: ClassVar[str] = ""

    kind: str = Field(description="what the dataset is")
    limit: int | None = Field(
        None,
        ge=1,
        le=100_000_000,
        description="largest number of samples that are used, spread evenly over the set",
    )
    numbering: Literal["model"] | None = Field(
        None,
        description='"model" says that the dataset numbers its classes (folders and names of labels in '
        "sorted order) as the model does; by default they are matched with the model's by synset or name",
    )

    def open(self, bands: Bands = RGB) -> Dataset:
        """Open the dataset; see the text at the top of this module.

        Parameters
        ----------
        bands
            What the values of images become; it does not matter for texts and tensors.
        """
        raise NotImplementedError

    @classmethod
    def own_keys(cls) -> list[str]:
        """The keys that the kind itself describes, besides ``kind``."""
        return [key for key in _written(cls, DatasetSpec, ImageFilesSpec) if key != "kind"]

    @classmethod
    def key_names(cls) -> list[str]:
        """The keys of the kind: its own first, and those of every kind last."""
        return _written(cls)

    def with_paths(self, change: Callable[[Path], Path]) -> Self:
        """The same table with every path of this machine replaced by what ``change`` makes of it."""

        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(changed, value))
            return change(value) if isinstance(value, Path) else value

        return self.model_copy(update={key: changed(getattr(self, key)) for key in type(self).model_fields})

    @model_validator(mode="before")
    @classmethod
    def _keys_belong_to_the_kind(cls, given: Any) -> Any:
        # A key that a kind does not use is an error, since it may be a mistake for another kind.
        if not isinstance(given, Mapping):
            return given
        given = {key: value for key, value in given.items() if value is not None}
        kind, known = given.get("kind", kinds.name_of(cls)), cls.key_names()
        for key in known:
            if cls.model_fields[key].is_required() and key not in given:
                raise ValueError(f'kind = "{kind}" needs the key {key}')
        for key in given:
            if key not in known:
                wrong, takes = str(key)[:_LONGEST_KEY], ", ".join(known[1:])
                raise ValueError(f'kind = "{kind}" does not take the key {wrong}; it takes {takes}')
        return given

    @model_serializer(mode="wrap")
    def _without_keys_that_are_not_given(
        self, dump: SerializerFunctionWrapHandler, asked: SerializationInfo
    ) -> dict[str, Any]:
        given = {key: value for key, value in dump(self).items() if value is not None}
        all_keys = self.kind in _FIRST_KINDS and not asked.exclude_unset
        return (dict.fromkeys(_FIRST_KEYS) if all_keys else {}) | given

    @staticmethod
    def _of_its_kind(given: Any) -> DatasetSpec:
        """Validate a table as the class of its kind does."""
        if isinstance(given, DatasetSpec):
            return given
        if not isinstance(given, Mapping):
            raise ValueError("must be a table with the key kind")
        kind = given.get("kind")
        try:
            if not isinstance(kind, str):
                raise ValueError(f"is missing or no text; choose from {', '.join(kinds.names())}")
            cls = kinds.get(kind)
        except ValueError as error:
            told = PydanticCustomError(
                "value_error", "{told}", {"told": str(error)}
            )  # its braces stay as they are
            raise ValidationError.from_exception_data(
                "dataset", [InitErrorDetails(type=told, loc=("kind",), input=None)]
            ) from error
        return cls.model_validate(given)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return how pydantic validates: a kind takes its own tables, and DatasetSpec those of every kind."""
        if BaseModel in cls.__bases__:  # DatasetSpec, which has no name yet while its own body is read
            return core_schema.no_info_plain_validator_function(cls._of_its_kind)
        return handler(source)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema of Prefect's form, which has one choice per kind."""
        if BaseModel in cls.__bases__:
            return handler(
                core_schema.union_schema([each.__pydantic_core_schema__ for each in kinds.usable()])
            )
        made = handler(schema)
        own = handler.resolve_ref_schema(made)
        own["title"] = kinds.name_of(cls)
        own["properties"] = {key: own["properties"][key] for key in cls.key_names()}
        own["required"] = list(dict.fromkeys(["kind", *own.get("required", [])]))
        return made


class ImageFilesSpec(DatasetSpec):
    """The keys of every kind whose items are image files."""

    exif: Literal["turn", "ignore"] | None = Field(
        None,
        description="turn: images and masks are turned upright as their EXIF orientation says, and boxes are "
        "in pixels of the upright image (default); ignore: they are taken as stored",
    )
    background: str | None = Field(
        None,
        description='colour behind transparent pixels, a name or "#rrggbb"; by default "white"',
    )
    range: _Number | _Range | None = Field(
        None,
        description="the value that is white, or [black, white], in files with more than 8 bits per value "
        "that are grey or read as bands, e.g. 4095; by default 65535 for 16 bits and 1 for floats read as "
        "bands; other files are not read",
    )
    depth: Literal[8, 16, 32] | None = Field(
        None,
        description="bits per value that inputs keep; 32: floats. By default 8 for a model of three "
        "channels, and for others those of the first image that can be read",
    )

    @field_validator("background")
    @classmethod
    def _background_is_a_colour(cls, value: str | None) -> str | None:
        if value is not None:
            _colour(value)
        return value

    @field_validator("range")
    @classmethod
    def _range_is_not_empty(
        cls, value: float | tuple[float, float] | None
    ) -> float | tuple[float, float] | None:
        if value is not None and _limits(value)[0] >= _limits(value)[1]:
            raise ValueError("black must be less than white, and a single number is white and more than 0")
        return value

    def reading(self, bands: Bands) -> Reading:
        """How the image files of the dataset are read."""
        return Reading(
            exif=self.exif or "turn",
            background=_colour(self.background or "white"),
            limits=None if self.range is None else _limits(self.range),
            bands=bands,
        )


def _written(cls: type[DatasetSpec], *until: type[DatasetSpec]) -> list[str]:
    """The keys in the order in which a class and its bases write them, its own first."""
    bases = takewhile(lambda base: base not in until, cls.__mro__)
    keys = (key for base in bases for key in vars(base).get("__annotations__", {}))
    return [key for key in dict.fromkeys(keys) if key in cls.model_fields]


def _colour(name: str) -> tuple[int, int, int]:
    """Return a colour as (red, green, blue); raise ValueError if there is no such colour."""
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ValueError(f'{name!r} is no colour; write a name, e.g. "white", or "#rrggbb"') from error
    return red, green, blue


def _limits(value: float | tuple[float, float]) -> tuple[float, float]:
    """Return the values that are black and white."""
    return value if isinstance(value, tuple) else (0.0, value)


# The registry of the kinds


class KindRegistry(Registry[type[DatasetSpec]]):
    """The kinds of datasets by name, which is the only value that their key ``kind`` takes."""

    written = r"""\bkind: Literal\[["']{}["']\]"""

    def name_of(self, cls: type[DatasetSpec]) -> str:
        """The name of a kind."""
        names = get_args(cls.model_fields["kind"].annotation)
        return str(names[0]) if names else cls.shown_as or cls.__name__

    def get(self, name: str) -> type[DatasetSpec]:
        """The kind called ``name``; an address of a callable is of the kind that calls it."""
        if ":" not in name:
            return super().get(name)
        from storage.datasets.kinds.torch_dataset import TorchDataset

        return TorchDataset

    def usable(self) -> list[type[DatasetSpec]]:
        """All kinds by name, without plug-ins that cannot be used: :meth:`names` says why they cannot."""
        with suppress(ValueError):
            self.names()
        return [cls for _, cls in sorted(self._classes.items())]

    def _complaint(self, cls: Any) -> str | None:
        if not issubclass(cls, DatasetSpec):
            return f"{cls.__qualname__} is not a subclass of {DatasetSpec.__module__}.DatasetSpec"
        if not (cls.shown_as or get_args(cls.model_fields["kind"].annotation)):
            return f'{cls.__qualname__} has no name; write its key as kind: Literal["NAME"]'
        return f"{cls.__qualname__} has no method open" if cls.open is DatasetSpec.open else None


kinds = KindRegistry("dataset kind", "storage.datasets.kinds", "floodlit.datasets", attributes=())
register = kinds.register
