"""FiftyOne: a folder in the format FiftyOneDataset, with images, classes, boxes, heatmaps and scores."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TextIO

from storage.run import Run
from storage.samples import each_sample
from tasks.export.reading import Part, each_part, label_of, prediction_of
from tasks.export.registry import IMAGES, exports

VERSION = "1.0.0"  # of FiftyOne, whose documents these are; later versions migrate them when they load them
_FIELDS, _LABELS = "fiftyone.core.fields", "fiftyone.core.labels"


@exports.register
class FiftyOne:
    """A folder for ``fiftyone.Dataset.from_dir(dataset_type=fiftyone.types.FiftyOneDataset)``."""

    name: ClassVar[str] = "fiftyone"
    title: ClassVar[str] = "a dataset folder for FiftyOne with heatmaps, classes, boxes and scores"
    modalities: ClassVar[frozenset[str]] = IMAGES

    def write(self, run: Run, folder: Path) -> list[str]:
        """Write ``metadata.json``, ``samples.json``, ``data/`` and ``fields/``.

        Images that could not be read are left out. Heatmaps and scores are those of the first explained
        class.
        """
        maps = _field_names("map_", run.explainers)
        scores = _score_names(run)
        (folder / "data").mkdir()
        for field in maps.values():
            (folder / "fields" / field).mkdir(parents=True)
        with (folder / "samples.json").open("w", encoding="utf-8") as file:
            written = _write_samples(file, _documents(run, folder, maps, scores))
        told = json.dumps(_metadata(run, maps, scores), indent=1)
        (folder / "metadata.json").write_text(told, encoding="utf-8")
        lost = f"; {run.rows - written:,} that could not be read are left out" if written < run.rows else ""
        return [
            f"{written:,} images with {len(maps)} heatmaps each{lost}",
            "open it: fiftyone.Dataset.from_dir('FOLDER', fiftyone.types.FiftyOneDataset)",
        ]


def _field_names(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """Names of fields, which FiftyOne allows, for names of any kind; no two are the same."""
    found: dict[str, str] = {}
    for name in names:
        plain = prefix + re.sub(r"\W", "_", name, flags=re.ASCII)
        while plain in found.values():
            plain += "_"
        found[name] = plain
    return found


def _score_names(run: Run) -> dict[tuple[str, str], str]:
    """The fields of the scores by explainer and column, such as ``gradcam_insertion``."""
    columns = [name for name, entry in run.columns.items() if entry.pooled is None]
    pairs = [(explainer, column) for explainer in run.explainers for column in columns]
    named = _field_names("", [f"{explainer} {column}" for explainer, column in pairs])
    return dict(zip(pairs, named.values(), strict=True))


def _write_samples(file: TextIO, documents: Iterator[dict[str, Any]]) -> int:
    """Write the documents one by one, since 50,000 need not be in memory at once; return their number."""
    file.write('{"samples": [')
    count = 0
    for document in documents:
        file.write(("," if count else "") + "\n" + json.dumps(document, ensure_ascii=False, allow_nan=False))
        count += 1
    file.write("\n]}\n")
    return count


def _documents(
    run: Run, folder: Path, maps: dict[str, str], scores: dict[tuple[str, str], str]
) -> Iterator[dict[str, Any]]:
    """Yield the document of every sample that was read, and write its image and its maps."""
    for part in each_part(run, scored=True):
        drawn = {field: part.map_pictures(name) for name, field in maps.items()}
        for place, image in enumerate(part.pictures):
            if image is None:
                continue
            file = f"{part.first + place:06d}.png"
            (folder / "data" / file).write_bytes(image)
            document = _document(part, place, f"data/{file}", len(image))
            for field, pictures in drawn.items():
                if (picture := pictures[place][0]) is not None:
                    (folder / "fields" / field / file).write_bytes(picture)
                    path = f"fields/{field}/{file}"
                    document[field] = _label(document, field, "Heatmap", map_path=path, range=[0, 255])
            found = part.scores(place)
            # JSON holds no infinity, which some metrics have as a score.
            numbers = {field: value for key, field in scores.items() if (value := found.get(key)) is not None}
            yield document | {field: value for field, value in numbers.items() if math.isfinite(value)}


def _document(part: Part, place: int, path: str, size: int) -> dict[str, Any]:
    """The document of one sample, without maps and scores."""
    sample, (height, width) = part.samples[place], part.run.input_size
    identity = hashlib.sha256(f"{part.run.hash}/{sample['sample_id']}".encode()).hexdigest()
    told: dict[str, Any] = {
        "_id": {"$oid": identity[:24]},
        "filepath": path,
        "tags": [],
        "metadata": {
            "_cls": "ImageMetadata",
            "size_bytes": size,
            "mime_type": "image/png",
            "width": width,
            "height": height,
            "num_channels": 3,
        },
        "_media_type": "image",
        "_rand": int(identity[-8:], 16) / 16**8,  # FiftyOne orders by it where it draws at random
        "sample_id": sample["sample_id"],
    }
    if (label := label_of(sample)) is not None:
        told["ground_truth"] = _label(told, "ground_truth", "Classification", label=label)
    if (prediction := prediction_of(sample)) is not None:
        sure = {"label": prediction, "confidence": sample["confidence"]}
        told["prediction"] = _label(told, "prediction", "Classification", **sure)
    if sample["targets"]:
        names = sample["target_names"] or [None]
        explained = names[0] or str(sample["target"])
        told["explained"] = _label(told, "explained", "Classification", label=explained)
    if sample["boxes"]:
        told["objects"] = {"_cls": "Detections", "detections": list(_boxes(told, sample, width, height))}
    return told


def _boxes(told: dict[str, Any], sample: dict[str, Any], width: int, height: int) -> Iterator[dict[str, Any]]:
    """Yield the boxes of a sample, in shares of its width and height."""
    classes = sample["box_labels"] or [None] * len(sample["boxes"])
    for number, ((xmin, ymin, xmax, ymax), of) in enumerate(zip(sample["boxes"], classes, strict=True)):
        box = [xmin / width, ymin / height, (xmax - xmin) / width, (ymax - ymin) / height]
        label = (label_of(sample) if of in {None, sample["label"]} else str(of)) or "object"
        yield _label(told, f"objects/{number}", "Detection", label=label, bounding_box=box, attributes={})


def _label(document: dict[str, Any], field: str, kind: str, **values: Any) -> dict[str, Any]:
    """A label of a sample, whose id follows from the sample's."""
    identity = hashlib.sha256(f"{document['_id']['$oid']}/{field}".encode()).hexdigest()[:24]
    return {"_id": {"$oid": identity}, "_cls": kind, "tags": [], **values}


def _metadata(run: Run, maps: dict[str, str], scores: dict[tuple[str, str], str]) -> dict[str, Any]:
    """The document of the dataset: its fields with their types, and where it is from."""
    fields = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("filepath", "StringField"),
        _field("tags", "ListField", subfield=f"{_FIELDS}.StringField"),
        _embedded("metadata", "fiftyone.core.metadata.ImageMetadata", _of_metadata()),
        _field("created_at", "DateTimeField", read_only=True),
        _field("last_modified_at", "DateTimeField", read_only=True),
        _field("sample_id", "StringField"),
    ]
    classes = [("label", "StringField"), ("confidence", "FloatField"), ("logits", "VectorField")]
    fields += [
        _embedded(name, f"{_LABELS}.Classification", _of_label(classes))
        for name in ("ground_truth", "prediction", "explained")
    ]
    if any(sample["boxes"] for sample in each_sample(run.root, ["boxes"])):
        fields.append(_embedded("objects", f"{_LABELS}.Detections", [_of_detections()]))
    heat = [("map", "ArrayField"), ("map_path", "StringField")]
    ranged = _field("range", "HeatmapRangeField", subfield=f"{_FIELDS}.FloatField")
    fields += [_embedded(name, f"{_LABELS}.Heatmap", [*_of_label(heat), ranged]) for name in maps.values()]
    fields += [_field(name, "FloatField") for name in scores.values()]
    empty: dict[str, Any] = {"saved_views": [], "workspaces": [], "annotation_runs": {}, "brain_methods": {}}
    return {
        "name": run.name,
        "version": VERSION,
        "media_type": "image",
        "tags": [],
        "info": {"floodlit": run.hash, "explainers": {field: name for name, field in maps.items()}},
        "sample_fields": fields,
        **empty,
        "evaluations": {},
        "runs": {},
    }


def _field(name: str, kind: str, **more: Any) -> dict[str, Any]:
    """The document of a field."""
    plain: dict[str, Any] = {"embedded_doc_type": None, "subfield": None, "fields": [], "db_field": name}
    told = {"description": None, "info": None, "read_only": False, "created_at": None}
    return {"name": name, "ftype": f"{_FIELDS}.{kind}", **plain, **told, **more}


def _embedded(name: str, kind: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return _field(name, "EmbeddedDocumentField", embedded_doc_type=kind, fields=fields)


def _of_label(more: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The fields of a label."""
    tags = _field("tags", "ListField", subfield=f"{_FIELDS}.StringField")
    return [_field("id", "ObjectIdField", db_field="_id"), tags, *(_field(name, kind) for name, kind in more)]


def _of_metadata() -> list[dict[str, Any]]:
    kinds = {"mime_type": "StringField"}
    names = ("size_bytes", "mime_type", "width", "height", "num_channels")
    return [_field(name, kinds.get(name, "IntField")) for name in names]


def _of_detections() -> dict[str, Any]:
    """The field that holds the list of boxes."""
    box = _field("bounding_box", "ListField", subfield=f"{_FIELDS}.FloatField")
    plain = [("label", "StringField"), ("mask", "ArrayField"), ("mask_path", "StringField")]
    plain += [("confidence", "FloatField"), ("index", "IntField")]
    fields = [*_of_label(plain), box]
    inner = {"embedded_doc_type": f"{_LABELS}.Detection", "subfield": f"{_FIELDS}.EmbeddedDocumentField"}
    return _field("detections", "ListField", **inner, fields=fields)
