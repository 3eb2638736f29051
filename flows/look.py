"""`floodlit look`: what a dataset holds, and how a job's model would see it, before any job is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from explainers.models.loading import ModelSpec
from flows.input_form import bands_of, geometry_of
from flows.job import Band, JobError
from flows.job_file import read_job
from flows.locations import lies_in, located_dataset, located_model
from plugins.registry import complaints
from storage.datasets.dataset import Dataset, spread
from storage.datasets.geometry import as_input, size_of
from storage.datasets.masks import OBJECT, notes_on, prepare_mask, united
from storage.datasets.notes import in_words, lines
from storage.datasets.opening import open_dataset
from storage.datasets.reading import RGB
from storage.datasets.spec import DatasetSpec
from storage.errors import LONGEST, one_line
from tasks.pictures.dataset_sheet import Seen, dataset_sheet
from tasks.pictures.drawing import save

DRAWN = 10  # samples of the picture
LOOKED_AT = 100  # samples that are read
LARGEST = 512  # pixels of a side of an image that is drawn without a model
CLASSES = 8  # classes that are named
PROBLEMS = 3  # items that cannot be used and are named
_FILES = {".csv": "csv", ".parquet": "parquet", ".tar": "webdataset"}  # kinds by the suffix of a file


class Looked(BaseModel):
    """The tables of a job that are looked at; others may be missing or unfinished."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)

    dataset: DatasetSpec
    model: ModelSpec | None = None
    shown_bands: tuple[Band, ...] | None = Field(None, strict=False)

    _dataset_paths_are_absolute = field_validator("dataset")(located_dataset)
    _model_paths_are_absolute = field_validator("model")(located_model)


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes
    ----------
    facts
        Lines for the terminal, by what they are about.
    more
        Further lines: which items cannot be used, and what was done to the others.
    nothing
        Whether no item that was looked at can be used.
    """

    facts: dict[str, str]
    more: list[str]
    nothing: bool


def read_looked(path: Path) -> Looked:
    """Return what a path stands for: a job file, a folder of images, a CSV listing, a Parquet file or a tar.

    Raises
    ------
    JobError
        If it is none of these, or the tables are not valid; the message is one line.
    """
    if path.suffix == ".toml":
        return read_job(path, Looked)
    kind = "folder" if path.is_dir() else _FILES.get(path.suffix.lower())
    if kind is None:
        raise JobError(
            f"{path} is neither a job file (.toml) nor a folder nor one of {', '.join(_FILES)}; for another "
            "kind of dataset write a file with the table [dataset]"
        )
    if not path.exists():
        raise JobError(f"there is no file or folder {path}")
    try:
        return Looked.model_validate({"dataset": {"kind": kind, "path": str(path)}})
    except ValidationError as error:
        raise JobError(f"{path}: {complaints(error)}") from error


def look(path: Path, picture: Path | None = None) -> Look:
    """Open a dataset, count what it holds, read some of its items, and draw ten if they are images.

    Parameters
    ----------
    path
        As for :func:`read_looked`. Images become the inputs of a job's model; without one they are shown as
        they are read.
    picture
        File of the picture; by default ``look-NAME.png`` in the working directory.

    Raises
    ------
    ValueError
        In one line that names the key, if the dataset cannot be opened or the picture cannot be written.
    """
    given = read_looked(path)
    bands = RGB if given.model is None else bands_of(given.dataset, given.model)
    dataset = open_dataset(given.dataset, bands)
    count = len(dataset.samples)
    named = _NAMES[dataset.modality] + "s" * (count != 1)
    facts = {"dataset": f"{given.dataset.kind}, {count} {named}"}
    facts |= ({"read": dataset.told} if dataset.told else {}) | _counts(dataset)
    places = spread(range(len(dataset.samples)), LOOKED_AT)
    if dataset.modality != "image":
        return _look_at_rows(dataset, places, facts)
    target = picture or Path(f"look-{path.resolve().stem}.png")
    _check_target(target, given.dataset)
    geometry: dict[str, Any] = {}
    size = None
    if given.model is not None:
        geometry, size, stored = geometry_of(given.model, dataset, bands)
        facts["inputs"] = f"{bands.channels}x{size[0]}x{size[1]}, {stored}"
    drawn = spread(places, DRAWN)
    seen = [_seen(dataset, place, geometry, size, keep=place in drawn) for place in places]
    try:
        save(dataset_sheet(spread(seen, DRAWN), given.shown_bands or ()), target)
    except OSError as error:
        raise ValueError(f"--out: cannot write {target}: {error.strerror}") from error
    facts |= _of_images(seen) | {"picture": str(target)}
    rows = [{"uri": each.sample_id, "notes": each.notes} for each in seen]
    more = [*_problems({each.sample_id: each.problem for each in seen}), *lines(rows, {})]
    return Look(facts, more, all(each.problem for each in seen))


_NAMES = {"image": "image", "text": "text", "tensor": "array"}


def _check_target(picture: Path, dataset: DatasetSpec) -> None:
    """Raise ValueError if a picture may overwrite a job file, or would be an image of the dataset later."""
    if picture.suffix.lower() != ".png":
        raise ValueError(f"--out: the picture is a PNG file; call {picture} something.png")
    for key in dataset.scanned:
        folder = getattr(dataset, key)
        if folder is not None and lies_in(picture.absolute(), folder):
            raise ValueError(f"--out: {picture} lies in the folder of the dataset; choose another place")


# What is known without reading items


def _counts(dataset: Dataset) -> dict[str, str]:
    """What a dataset holds: left out files, classes, labels and boxes."""
    samples = dataset.samples
    labels = Counter(label for sample in samples for label in sample.every_label)
    missing = sum(not sample.every_label for sample in samples)
    boxes = [len(sample.boxes) for sample in samples if sample.boxes]
    facts = {"left out": in_words(dataset.left_out)} if dataset.left_out else {}
    facts["classes"] = _classes(labels, dataset.classes) if labels else "none"
    facts["labels"] = (
        f"missing for {missing}" if labels and missing else "on every item" if labels else "none"
    )
    if dataset.modality == "image":
        facts["boxes"] = f"{sum(boxes)} on {len(boxes)} images" if boxes else "none"
    return facts


def _classes(labels: Counter[int], names: Sequence[str]) -> str:
    """The number of classes and how many items have each, the most frequent ones first."""
    order = sorted(labels.items(), key=lambda each: (-each[1], each[0]))
    named = [
        f"{names[label] if 0 <= label < len(names) else label} ({count})" for label, count in order[:CLASSES]
    ]
    rest = [count for _, count in order[CLASSES:]]
    few = f"{rest[-1]} to {rest[0]}" if rest and rest[0] != rest[-1] else str(rest[0] if rest else "")
    more = f", and {len(rest)} more with {few} each" if rest else ""
    of = f" of {len(names)}" if len(names) > len(labels) else ""
    return f"{len(labels)}{of}: {', '.join(named)}{more}"


# Images


def _seen(
    dataset: Dataset, place: int, geometry: dict[str, Any], size: tuple[int, int] | None, *, keep: bool
) -> Seen:
    """Read an image, its boxes and its mask, and prepare them as for a run; pixels are kept to be drawn."""
    sample = dataset.samples[place]
    seen = Seen(sample.sample_id, ", ".join(_name(dataset, label) for label in sample.every_label))
    try:
        image = dataset.load(place, seen.notes)
        seen.size = size_of(image)  # type: ignore[arg-type]
        how = geometry or _reduced(seen.size)
        boxes = dataset.boxes(place, seen.size, seen.notes)
        pixels, seen.boxes = as_input(image, boxes, how, size, seen.notes)  # type: ignore[arg-type]
        mask = dataset.mask(place, seen.size, seen.notes)
        if mask is not None:
            prepared = united(prepare_mask(mask, how))
            seen.notes += notes_on(united(np.asarray(mask)), prepared)
            seen.covered, seen.mask = float((prepared == OBJECT).mean()), prepared if keep else None
        seen.pixels = pixels if keep else None
        seen.below = "{}x{}".format(*seen.size)
        seen.below += ", seen as {1}x{0}".format(*pixels.shape[1:]) if geometry else ""
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        seen.problem, seen.below = one_line(error, LONGEST), "cannot be used"
    return seen


def _reduced(size: tuple[int, int]) -> dict[str, Any]:
    """How an image is prepared that no model sees: as it is, or smaller if it is large."""
    large = max(size) > LARGEST
    return {"resize": (LARGEST, LARGEST) if large else None, "crop": None, "fit": "contain"}


def _name(dataset: Dataset, label: int) -> str:
    return dataset.classes[label] if 0 <= label < len(dataset.classes) else f"label {label}"


def _of_images(seen: Sequence[Seen]) -> dict[str, str]:
    """What the images that were looked at are: readable or not, their sizes and their masks."""
    sizes = sorted(
        (each.size for each in seen if not each.problem), key=lambda size: (size[0] * size[1], size)
    )
    facts = {"looked at": _looked(len(seen), sum(bool(each.problem) for each in seen))}
    if sizes:
        told = ("{}x{}".format(*size) for size in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        facts["sizes"] = "{} (smallest), {} (median), {} (largest)".format(*told)
    masks = [each.covered for each in seen if each.covered is not None]
    facts["masks"] = "none"
    if masks:
        share = f"{np.median(masks):.0%}"
        facts["masks"] = f"on {len(masks)} of these, where the object is {share} of what is seen (median)"
    return facts


def _looked(count: int, wrong: int) -> str:
    return f"{count}, spread evenly; {wrong} of them cannot be used" if wrong else f"{count}, spread evenly"


def _problems(wrong: dict[str, str]) -> list[str]:
    """Lines on the first items that cannot be used."""
    told = [f"{name} cannot be used: {problem}" for name, problem in wrong.items() if problem]
    return told[:PROBLEMS]


# Texts and arrays


def _look_at_rows(dataset: Dataset, places: Sequence[int], facts: dict[str, str]) -> Look:
    """Read rows of a table: how long the texts are, or in which range the numbers lie."""
    items: list[Any] = []
    wrong: dict[str, str] = {}
    for place in places:
        try:
            items.append(dataset.load(place))
        except Exception as error:  # as above
            wrong[dataset.samples[place].sample_id] = one_line(error, LONGEST)
    facts["looked at"] = _looked(len(places), len(wrong))
    if items and dataset.modality == "text":
        lengths = sorted(map(len, items))
        told = lengths[0], lengths[len(lengths) // 2], lengths[-1]
        facts["lengths"] = "{} (shortest), {} (median), {} (longest) characters".format(*told)
        facts["the first"] = items[0]
    elif items:
        shapes = dict.fromkeys("x".join(map(str, item.shape)) for item in items)
        low, high = (float(of([of(item) for item in items])) for of in (np.min, np.max))
        facts["shapes"] = ", ".join(shapes)
        facts["values"] = f"{low:g} to {high:g}"
    return Look(facts, _problems(wrong), not items)
