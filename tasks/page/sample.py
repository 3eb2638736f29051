"""What the page says about one sample: its picture, its maps, its scores, and what explainers tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from storage.characters import shown
from storage.maps import read_rows
from storage.run import Run
from storage.samples import read_samples_of_shard
from storage.scores import read_numbers
from tasks.objects import boxes_of, masks_of
from tasks.page.picture_data import Link, mask_png, webp
from tasks.page.sample_details import DetailsOf, Told
from tasks.page.sample_scores import Curves, Numbers, ScoreRow, ScoresOf
from tasks.page.sequences import Series, series_of
from tasks.page.shown_maps import ShownMap, maps_of, tokens_shown
from tasks.pictures.drawing import coloured, explained, label_of, shown_bands, told_bands

_SIDE = 256  # pixels of the longer side of an input in the page, at most


@dataclass(frozen=True)
class Target:
    """One explained class of a sample, with its maps.

    ``boxes`` are (x, y, width, height) in pixels of the input; ``mask`` is the address of its picture.
    """

    title: str
    maps: list[ShownMap]
    boxes: list[tuple[float, float, float, float]]
    mask: str
    scores: list[ScoreRow]
    curves: list[Curves]
    details: list[Told]


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes
    ----------
    key
        What identifies it in the page.
    name, label
        Its id; its label in words, empty if it has none.
    error
        Why nothing is known about it; empty if it was read.
    notes
        What was done to the input.
    picture, size
        Address of its picture, and (height, width) of the input in pixels; empty and (0, 0) unless it is an
        image.
    series
        The lines or bars of a tensor.
    """

    key: str
    name: str
    modality: str
    label: str
    error: str
    notes: list[str]
    picture: str
    size: tuple[int, ...]
    series: Series | None
    targets: list[Target]


def samples_of(run: Run, rows: Sequence[int], link: Link, numbers_of: Numbers = read_numbers) -> list[Sample]:
    """Say everything about some samples of a run, given by their index in it.

    All that is read of one array is read together. The pictures of many maps are reduced, so that a page of
    48 samples stays small. A program that shows many pages keeps the scores that ``numbers_of`` gives.
    """
    known = _read_samples(run, rows)
    maps = [
        row * run.targets_per_image + place
        for row in rows
        for place in range(len(known[row]["targets"] or ()))
    ]
    shown_maps = maps_of(run, known, maps, link)
    scores, details = ScoresOf(run, maps, numbers_of), DetailsOf(run, maps, link)
    masks = _masks(run, known, maps, link)
    usable = [row for row in rows if known[row]["status"] == "ok"]
    values = dict(zip(usable, read_rows(run.inputs, usable), strict=True)) if usable else {}
    found = []
    for row in rows:
        sample = known[row]
        targets = [
            Target(
                title=explained(sample, target),
                maps=shown_maps[at],
                boxes=[(x, y, right - x, below - y) for x, y, right, below in boxes_of(sample, target)],
                mask=masks.get(at, ""),
                scores=scores.rows_of(at),
                curves=scores.curves_of(at),
                details=details.of(at),
            )
            for place, target in enumerate(sample["targets"] or ())
            for at in [row * run.targets_per_image + place]
        ]
        found.append(_sample(run, row, sample, values.get(row), targets, tokens_shown(run, len(rows)), link))
    return found


def _read_samples(run: Run, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The rows of the samples by their index in the run; every shard is read once."""
    size = run.manifest.shard_rows
    shards = {
        shard: read_samples_of_shard(run.root, shard) for shard in sorted({row // size for row in rows})
    }
    return {row: shards[row // size][row % size] for row in rows}


def _sample(
    run: Run,
    row: int,
    sample: dict[str, Any],
    values: NDArray[Any] | None,
    targets: list[Target],
    tokens: int,
    link: Link,
) -> Sample:
    error = "" if sample["status"] == "ok" else shown(sample["error"] or "it could not be read")
    if not error and not targets:
        error = shown(sample["error"] or "it has no label, so that nothing is explained")
    picture = ""
    if run.modality == "image" and values is not None:
        picture = link(f"image/{row}.webp", partial(_image, values, shown_bands(run)))
    notes = [shown(note) for note in sample["notes"] or ()]
    count, read = len(sample["tokens"] or ()), sample["width"] or 0
    if run.modality == "text" and count < read:
        notes.append(f"the model reads the first {count:,} of {read:,} tokens")
    if run.modality == "text" and tokens < count:
        notes.append(f"the first {tokens:,} of {count:,} tokens are shown")
    return Sample(
        key=f"sample-{row}",
        name=shown(sample["sample_id"]),
        modality=run.modality,
        label=label_of(sample) or "",
        error=error,
        notes=notes,
        picture=picture,
        size=run.input_size if run.modality == "image" else (0, 0),
        series=series_of(values) if run.modality == "tensor" and values is not None else None,
        targets=targets,
    )


def _image(values: NDArray[Any], bands: tuple[int, ...]) -> bytes:
    return webp(coloured(values, bands), _SIDE)


def _masks(run: Run, known: dict[int, dict[str, Any]], rows: Sequence[int], link: Link) -> dict[int, str]:
    """The addresses of the masks that count for these rows of maps; a mask without any pixel is left out."""
    if not run.manifest.masks or not rows:
        return {}
    k = run.targets_per_image
    samples = [known[row // k] for row in rows]
    targets = [sample["targets"][row % k] for sample, row in zip(samples, rows, strict=True)]
    masks = read_rows(run.masks, [row // k for row in rows])
    if masks.ndim > 3:  # each class has its own
        import torch  # imported late, because other pages do without it

        masks = masks_of(torch.from_numpy(masks), samples, targets).numpy()
    return {
        row: link(f"mask/{row}.png", partial(mask_png, mask))
        for row, mask in zip(rows, masks, strict=True)
        if mask.any()
    }


def bands_told(run: Run) -> str:
    """Which bands the pictures of inputs show, in words; empty for plain colours and other inputs."""
    return told_bands(run).replace("\n", ", ") if run.modality == "image" else ""
