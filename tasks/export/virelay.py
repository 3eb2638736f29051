"""ViRelAy: the images and the maps as HDF5 files, and a project file for each explainer."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.run import Run
from storage.samples import each_sample
from tasks.export.reading import Part, class_names, each_part
from tasks.export.registry import IMAGES, exports
from tasks.pictures.drawing import coloured, shown_bands

CHANNELS = 3  # of images and maps; ViRelAy adds the channels of a map up
LEAST = 3  # cells of a map along each axis, by which ViRelAy tells the axis of the channels
NO_LABEL = "no label"


@exports.register
class ViRelAy:
    """``dataset.h5``, ``<explainer>.h5``, ``label-map.json`` and ``<explainer>.yaml``."""

    name: ClassVar[str] = "virelay"
    title: ClassVar[str] = "HDF5 files and projects for ViRelAy, and for CoRelAy to analyse"
    modalities: ClassVar[frozenset[str]] = IMAGES

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write the files. Samples without an explained class are left out; of several, the first counts."""
        if find_spec("h5py") is None or find_spec("yaml") is None:
            raise ValueError("to: virelay needs an extra: pip install 'floodlit[virelay]'")
        import yaml

        names = class_names(run)
        classes = max([run.manifest.num_classes or 0, *(number + 1 for number in names)])
        count = _write_files(run, folder, classes)
        labels = [names.get(number, str(number)) for number in range(classes)] + [NO_LABEL]
        told = [{"index": n, "word_net_id": f"class-{n}", "name": name} for n, name in enumerate(labels)]
        (folder / "label-map.json").write_text(
            json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8"
        )
        for name in run.explainers:
            project = yaml.safe_dump({"project": _project(run, name)}, allow_unicode=True, sort_keys=False)
            (folder / f"{name}.yaml").write_text(project, encoding="utf-8")
        lost = f"; {run.rows - count:,} without a map are left out" if count < run.rows else ""
        return [
            f"{count:,} images, and {len(run.explainers)} projects, one per explainer{lost}",
            "open it: virelay FOLDER/*.yaml, after CoRelAy has made an analysis of each <explainer>.h5",
        ]


def _project(run: Run, explainer: str) -> dict[str, Any]:
    """The content of a project file; its paths are relative to it."""
    height, width = run.input_size
    strategy = "true_label" if run.explains_labels or run.target == "label" else "predicted_label"
    if isinstance(run.target, int):
        strategy = f"class {run.target}"
    return {
        "name": f"{run.name}: {explainer}",
        "model": str(run.job["model"].get("name") or run.job["model"]["source"]),
        "label_map": "label-map.json",
        "dataset": {
            "name": run.name,
            "type": "hdf5",
            "path": "dataset.h5",
            "input_width": width,
            "input_height": height,
            "down_sampling_method": "none",
            "up_sampling_method": "none",
        },
        "attributions": {
            "attribution_method": explainer,
            "attribution_strategy": strategy,
            "sources": [f"{explainer}.h5"],
        },
    }


def _write_files(run: Run, folder: Path, classes: int) -> int:
    """Write the HDF5 files some samples at a time; return the number of samples."""
    import h5py

    several = any(
        sample["labels"] for sample in each_sample(run.root, ["labels"]) if not run.manifest.exclusive
    )
    start, bands = 0, shown_bands(run)
    with h5py.File(folder / "dataset.h5", "w") as dataset:
        for part in each_part(run):
            kept = [place for place, sample in enumerate(part.samples) if sample["targets"]]
            if not kept:
                continue
            images = np.stack([np.moveaxis(coloured(part.inputs[place], bands), -1, 0) for place in kept])
            labels = _labels(part, kept, classes, several)
            _append(dataset, {"data": images, "label": labels, "sample_id": _ids(part, kept)})
            targets = np.array([part.samples[place]["target"] for place in kept], np.uint32)
            rows = np.arange(start, start + len(kept), dtype=np.uint32)
            told: dict[str, NDArray[Any]] = {
                "index": rows,
                "label": targets,
                "prediction": _predictions(part, kept, classes),
            }
            for name in run.explainers:
                maps = part.maps(name)[kept, 0]
                there = np.isfinite(maps).all((1, 2))
                own = {key: values[there] for key, values in told.items()}
                with h5py.File(folder / f"{name}.h5", "a") as file:
                    _append(file, own | {"attribution": _attribution(maps[there])})
            start += len(kept)
    if not start:
        raise ValueError(f"to: virelay shows maps, and no sample of {run.root} has one")
    return start


def _append(file: Any, values: dict[str, NDArray[Any]]) -> None:
    """Append rows to the datasets of an open file, which are created with the first rows."""
    for name, rows in values.items():
        if name not in file:
            kind = _type(rows)
            file.create_dataset(
                name,
                (0, *rows.shape[1:]),
                kind,
                maxshape=(None, *rows.shape[1:]),
                chunks=True,
                compression="gzip",
            )
        held = file[name]
        held.resize(len(held) + len(rows), axis=0)
        held[len(held) - len(rows) :] = rows


def _type(values: NDArray[Any]) -> Any:
    """The type in which an array is stored: UTF-8 of any length for texts."""
    import h5py

    return h5py.string_dtype() if values.dtype == object else values.dtype


def _ids(part: Part, kept: list[int]) -> NDArray[Any]:
    return np.array([part.samples[place]["sample_id"] for place in kept], object)


def _labels(part: Part, kept: list[int], classes: int, several: bool) -> NDArray[Any]:
    """(n,) the labels, or the number behind the last class; or (n, classes) bool of several labels."""
    if not several:
        known = [part.samples[place]["label"] for place in kept]
        return np.array([classes if label is None else label for label in known], np.uint32)
    found = np.zeros((len(kept), classes + 1), bool)
    for row, place in enumerate(kept):
        found[row, part.samples[place]["labels"] or [classes]] = True
    return found


def _predictions(part: Part, kept: list[int], classes: int) -> NDArray[np.float32]:
    """(n, classes) the probabilities that the run has: of the predicted and the explained classes; else 0."""
    found = np.zeros((len(kept), classes), np.float32)
    for row, place in enumerate(kept):
        sample = part.samples[place]
        if sample["probabilities"]:
            found[row, sample["targets"]] = sample["probabilities"]
        found[row, sample["prediction"]] = sample["confidence"]
    return found


def _attribution(maps: NDArray[Any]) -> NDArray[np.float32]:
    """(n, channels, h, w) maps as ViRelAy shows them: their channels add up to the raw, signed map.

    The grid stays the explainer's own; cells of one with fewer than three along an axis are repeated.
    """
    for axis in (1, 2):
        maps = np.repeat(maps, -(-LEAST // maps.shape[axis]), axis)
    shares = np.float32(1 / CHANNELS) * maps.astype(np.float32)
    return np.repeat(shares[:, None], CHANNELS, axis=1)
