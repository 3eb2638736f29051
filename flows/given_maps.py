"""Maps that another program made, checked against the dataset and the classifier before any worker starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from explainers.base import Parameters
from explainers.models.black_box import BlackBox
from storage.datasets.dataset import Dataset
from storage.datasets.geometry import size_of
from storage.files import UnreadableError
from storage.given_maps import GivenMaps, channel_axis, open_given

_TRIED = 20  # images that are read to compare the size of one with that of its map


def with_given_maps(
    parameters: Parameters, classifier: BlackBox, dataset: Dataset, targets: int, partial: bool
) -> tuple[Parameters, str]:
    """Return the parameters with the grid of the maps, and in words what is known of the maps.

    Parameters
    ----------
    parameters
        ``path``, ``grid`` and ``covers`` of an explainer that needs given maps.
    classifier, dataset
        What the maps are to explain.
    targets
        Classes that the job explains per sample.
    partial
        Whether the maps may be those of further samples too.

    Raises
    ------
    ValueError
        In one line that begins with the key: the maps are not those of the dataset or of the classifier.
    """
    asked: Any = parameters
    path = asked.path
    if path is None:
        raise ValueError("path: say the file or the folder of the maps")
    if path.as_posix().startswith("s3:/"):
        raise ValueError(f"path: {path.as_posix()} is on S3; copy the maps to a folder that all workers see")
    if asked.covers == "image" and classifier.modality != "image":
        raise ValueError(f'covers: "image" is for images, and the inputs are {classifier.modality}s')
    if asked.covers == "image" and asked.grid is not None:
        raise ValueError('grid: maps with covers = "image" are as large as their images; leave grid out')
    try:
        given = open_given(path)
        _check_targets(given, classifier, targets)
        places = given.check_samples(dataset.samples, partial)
        shapes = _shapes(given, places, len(classifier.input_shape) - 1, asked.grid)
        if asked.covers == "image":
            _check_covers(given, places, dataset)
            grid = tuple(classifier.input_shape[1:])
        else:
            grid = _common(path, shapes, classifier.modality == "image")
    except ValueError as error:
        raise ValueError(f"path: {error}") from error
    if asked.covers == "input":
        _check_grid(grid, asked.grid, classifier)
        if "covers" not in parameters.model_fields_set:
            _check_said(grid, places, dataset, classifier)
    return parameters.model_copy(update={"grid": grid}), _told(given, places)


def _check_targets(given: GivenMaps, classifier: BlackBox, targets: int) -> None:
    """Raise ValueError if it is unclear which map is that of an explained class."""
    if given.targets is None:
        if targets > 1:
            raise ValueError(
                f"{given.path} does not state the classes of its maps, and the job explains {targets} per "
                "sample; give an .npz file or a Zarr group with targets, (n, m) for maps (n, m, h, w)"
            )
        return
    highest, lowest = int(given.targets.max(initial=-1)), int(given.targets.min(initial=0))
    if highest >= classifier.num_classes or lowest < -1:
        wrong = highest if highest >= classifier.num_classes else lowest
        raise ValueError(
            f"{given.path}: the target {wrong} is no class; the model's are 0 to {classifier.num_classes - 1}"
        )


def _shapes(
    given: GivenMaps, places: Sequence[int | None], sites: int, grid: Sequence[int] | None
) -> list[tuple[int, ...]]:
    """Return the shapes of the maps, each once."""
    found: dict[tuple[int, ...], None] = {}
    entries = (given.entries.shape(place) for place in places if place is not None)
    # A file that is damaged has no shape; its map cannot be read, which is said of its row.
    for shape in dict.fromkeys(shape for shape in entries if shape is not None):
        axis = channel_axis(shape, sites, given.several, grid)
        plain = shape if axis is None else shape[:axis] + shape[axis + 1 :]
        if 0 in plain:
            raise ValueError(f"{given.path} holds maps of {_size(plain)}")
        if given.targets is not None and given.several and plain[0] != given.targets.shape[1]:
            raise ValueError(
                f"{given.path} holds {plain[0]} maps per sample and {given.targets.shape[1]} targets"
            )
        found[plain[given.several :]] = None
    if not found:
        raise ValueError(f"{given.path} holds no map that can be read")
    return list(found)


def _common(path: Path, shapes: Sequence[tuple[int, ...]], image: bool) -> tuple[int, ...]:
    """Return the one shape of all maps."""
    if len(shapes) > 1:
        told = ", ".join(map(_size, shapes[:3]))
        advice = ', or set covers = "image" if each is as large as its whole image' if image else ""
        raise ValueError(f"{path} holds maps of {len(shapes)} shapes, e.g. {told}; write them in one{advice}")
    return shapes[0]


def _check_grid(grid: tuple[int, ...], said: Sequence[int] | None, classifier: BlackBox) -> None:
    """Raise ValueError if maps on a grid cannot be maps of the network's input."""
    if said is not None and tuple(said) != grid:
        raise ValueError(f"grid: the maps are {_size(grid)}, and not {_size(said)}")
    size = tuple(classifier.input_shape[1:])
    image = classifier.modality == "image"
    advice = 'set covers = "image" if they are maps of whole images, else ' if image else ""
    if any(cells > length for cells, length in zip(grid, size, strict=True)):
        raise ValueError(
            f"path: the maps are {_size(grid)}, finer than the network's input of {_size(size)}; {advice}"
            "write them smaller"
        )
    # A grid of the network's own is its input divided by a stride and rounded, on each side.
    if image and said is None and abs(grid[0] * size[1] - grid[1] * size[0]) >= max(size):
        raise ValueError(
            f"path: the maps are {_size(grid)}, which are not the proportions of the network's input, "
            f"{_size(size)}; {advice}set grid = [{grid[0]}, {grid[1]}] if they cover just that input"
        )
    if not image and said is None and grid != size:
        raise ValueError(
            f"path: the maps have {_size(grid)} values, and the network's inputs {_size(size)} sites; set "
            f"grid = [{_size(grid)}] if they are coarser maps of the whole input"
        )


def _check_said(
    grid: tuple[int, ...], places: Sequence[int | None], dataset: Dataset, classifier: BlackBox
) -> None:
    """Raise ValueError if maps as large as their images may cover these, and the job does not say it."""
    if classifier.modality != "image" or grid == tuple(classifier.input_shape[1:]):
        return
    first = next(_images(places, dataset), None)
    if first is not None and first[2] == grid:
        raise ValueError(
            f"covers: the maps are {_size(grid)}, as large as the images before they are resized and "
            'cropped; set covers = "image" if they are maps of whole images, else covers = "input"'
        )


def _check_covers(given: GivenMaps, places: Sequence[int | None], dataset: Dataset) -> None:
    """Raise ValueError if the first map of an image that can be read is not as large as the image."""
    for row, place, size in _images(places, dataset):
        shape = given.entries.shape(place)
        if shape is None:
            continue
        axis = channel_axis(shape, 2, given.several, size)
        plain = (shape if axis is None else shape[:axis] + shape[axis + 1 :])[given.several :]
        if plain != size:
            raise ValueError(
                f"{given.path}: the map of {dataset.samples[row].sample_id!r} is {_size(plain)}, and its "
                f"image {_size(size)}, height first; maps that cover images are as large as they"
            )
        return


def _images(places: Sequence[int | None], dataset: Dataset) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield the row, the place of the map and the (height, width) of the first images that can be read."""
    for row, place in [(row, place) for row, place in enumerate(places) if place is not None][:_TRIED]:
        try:
            width, height = size_of(dataset.load(row))  # type: ignore[arg-type]
        except UnreadableError:
            continue
        yield row, place, (height, width)


def _told(given: GivenMaps, places: Sequence[int | None]) -> str:
    """Return in words of how many samples there are maps, and what is known of their classes."""
    there = sum(place is not None for place in places)
    classes = (
        "the file does not state their classes, so it is not known that they are those which are explained"
        if given.targets is None
        else "the file states their classes, which are compared with those that are explained"
    )
    return f"maps of {there:,} of {len(places):,} samples, made by another program; {classes}"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
