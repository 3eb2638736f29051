"""Each export is opened by the tool that it is for, or read strictly as the tool's format says."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from storage.given_maps import open_given
from storage.maps import read
from storage.run import Run
from storage.samples import read_samples
from storage.scores import read_values
from tasks.export.exporting import export
from tasks.export.reading import Part
from tasks.export.virelay import _labels
from tasks.metrics.preparation import prepare
from tasks.pictures.drawing import pixels_of

NAMES = ["gradcam", "occ.1", "random", "center_gaussian", "sobel", "all_ones"]


def written(run: Run, target: str, tmp_path: Path) -> Path:
    return export(run, target, tmp_path / target)[0]


def raw(run: Run, name: str, image: int, target: int = 0) -> np.ndarray:
    row = 2 * image + target
    return read(run.saliency(name) / "maps", row, row + 1)[0]


def scores(run: Run, name: str, metric: str) -> list[float | None]:
    return [row["value"] for row in read_values(run, name).to_pylist() if row["metric"] == metric]


def grey(run: Run, name: str, image: int, target: int = 0) -> np.ndarray:
    """A map as a picture, from its definition: ReLU and min-max on its own grid."""
    positive = np.maximum(raw(run, name, image, target).astype(np.float64), 0)
    low, high = positive.min(), positive.max()
    shares = (positive - low) / (high - low) if high > low else np.full_like(positive, float(high > 0))
    return np.rint(255 * shares)


def test_hugging_face_gives_images_and_maps_as_images(exported_run: Run, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = written(exported_run, "huggingface", tmp_path)
    assert sorted(path.name for path in (folder / "data").iterdir())[2] == "train-00002-of-00003.parquet"
    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == 13  # two rows per image, and one for that which cannot be read
    assert isinstance(found.features["image"], datasets.Image)
    assert {name for name, kind in found.features.items() if isinstance(kind, datasets.Image)} == {
        "image",
        *(f"map_{name}" for name in NAMES),
    }
    samples = read_samples(exported_run.root)
    row = found[5]
    assert row["sample_id"] == samples[2]["sample_id"]
    assert (row["target"], row["label"]) == (samples[2]["targets"][1], samples[2]["label"])
    assert row["boxes"] == samples[2]["boxes"]
    assert row["correct"] == (samples[2]["label"] == samples[2]["prediction"])
    np.testing.assert_array_equal(np.asarray(row["image"]), pixels_of(exported_run, 2))
    for name in NAMES:
        np.testing.assert_allclose(np.asarray(row[f"map_{name}"]), grey(exported_run, name, 2, 1), atol=1)
        assert row[f"{name}/sparseness"] == scores(exported_run, name, "sparseness")[5]
    lost = found[8]
    assert (lost["status"], lost["image"], lost["map_gradcam"], lost["target"]) == (
        "failed",
        None,
        None,
        None,
    )
    assert "0 is no evidence" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_map_is_drawn_as_the_metrics_take_it(exported_run: Run, tmp_path: Path) -> None:
    maps = torch.from_numpy(raw(exported_run, "gradcam", 0))[None]
    prepared, _ = prepare(maps, (8, 8))
    np.testing.assert_allclose(255 * prepared[0].numpy(), grey(exported_run, "gradcam", 0), atol=0.51)


def test_the_atlas_table_has_a_row_per_sample_that_pandas_and_duckdb_read(
    exported_run: Run, tmp_path: Path
) -> None:
    path = written(exported_run, "atlas", tmp_path) / "samples.parquet"
    frame = pandas.read_parquet(path)
    samples = read_samples(exported_run.root)
    assert frame["sample_id"].tolist() == [sample["sample_id"] for sample in samples]
    assert frame["target"].isna().tolist() == [sample["target"] is None for sample in samples]
    np.testing.assert_array_equal(
        frame["occ.1/sparseness"], np.array(scores(exported_run, "occ.1", "sparseness")[::2], float)
    )
    with Image.open(io.BytesIO(frame["image"][6]["bytes"])) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels_of(exported_run, 6))
    assert frame["image"][4] is None
    asked = f"""SELECT avg("gradcam/sparseness") FROM '{path}' WHERE correct"""
    wanted = [
        value
        for value, sample in zip(scores(exported_run, "gradcam", "sparseness")[::2], samples, strict=True)
        if sample["label"] == sample["prediction"] and value is not None
    ]
    assert duckdb.sql(asked).fetchall()[0][0] == pytest.approx(np.mean(wanted))


def test_npz_files_are_read_by_numpy_and_by_the_explainer_maps(exported_run: Run, tmp_path: Path) -> None:
    folder = written(exported_run, "npz", tmp_path)
    samples = read_samples(exported_run.root)
    for name in NAMES:
        with np.load(folder / f"{name}.npz") as found:
            assert set(found) == {"maps", "ids", "targets"}
            stored = read(exported_run.saliency(name) / "maps", 0, 14)
            np.testing.assert_array_equal(found["maps"].reshape(stored.shape), stored)
            assert found["ids"].tolist() == [sample["sample_id"] for sample in samples]
            assert found["targets"].tolist() == [[*sample["targets"], -1, -1][:2] for sample in samples]
    given = open_given(folder / "occ.1.npz")
    assert given.several == 1
    place = given.place(0, samples[5]["sample_id"])
    (own,) = given.entries.read([place])
    np.testing.assert_array_equal(own[1], raw(exported_run, "occ.1", 5, 1))
    assert (folder / "samples.parquet").read_bytes() == exported_run.samples.read_bytes()


# FiftyOne


OID = re.compile(r"[0-9a-f]{24}")
KINDS = {
    "ObjectIdField": lambda value: OID.fullmatch(value["$oid"]),
    "StringField": lambda value: isinstance(value, str),
    "IntField": lambda value: type(value) is int,
    "FloatField": lambda value: isinstance(value, int | float),
    "ListField": lambda value: isinstance(value, list),
    "HeatmapRangeField": lambda value: len(value) == 2 and value[0] < value[1],
    "DictField": lambda value: isinstance(value, dict),
}


def check_document(document: dict[str, Any], fields: list[dict[str, Any]], ids: set[str]) -> None:
    """Check that a document has nothing but the declared fields, with values of their types."""
    known = {field["db_field"]: field for field in fields}
    for key, value in document.items():
        if key in {"_cls", "_media_type", "_rand", "attributes"}:
            continue
        field = known[key]
        kind = field["ftype"].removeprefix("fiftyone.core.fields.")
        if kind == "EmbeddedDocumentField":
            assert value["_cls"] == field["embedded_doc_type"].rpartition(".")[2]
            check_document(value, field["fields"], ids)
            continue
        assert KINDS[kind](value), (key, value)
        if kind == "ObjectIdField":
            assert value["$oid"] not in ids, "an id is used twice"
            ids.add(value["$oid"])
        if kind == "ListField" and field["embedded_doc_type"]:
            for each in value:
                assert each["_cls"] == field["embedded_doc_type"].rpartition(".")[2]
                check_document(each, field["fields"], ids)


def test_an_infinite_score_is_no_field_of_a_fiftyone_sample(
    exported_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {("gradcam", "sparseness"): math.inf, ("gradcam", "pointing_game"): 0.25}
    monkeypatch.setattr(Part, "scores", lambda *_: told)
    samples = json.loads((written(exported_run, "fiftyone", tmp_path) / "samples.json").read_text())[
        "samples"
    ]
    assert {sample["gradcam_pointing_game"] for sample in samples} == {0.25}
    assert not any("gradcam_sparseness" in sample for sample in samples)


def test_fiftyone_gets_what_its_format_says(exported_run: Run, tmp_path: Path) -> None:
    """Written documents are those of ``fiftyone.types.FiftyOneDataset``, read as its importer reads them."""
    folder = written(exported_run, "fiftyone", tmp_path)
    told = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    assert told["version"] == "1.0.0"  # without a version it would be taken for the legacy format
    assert told["media_type"] == "image"
    names = [field["name"] for field in told["sample_fields"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]\w*", name) for name in names)
    documents = json.loads((folder / "samples.json").read_text(encoding="utf-8"))["samples"]
    samples = [sample for sample in read_samples(exported_run.root) if sample["status"] == "ok"]
    assert [each["sample_id"] for each in documents] == [sample["sample_id"] for sample in samples]
    ids: set[str] = set()
    for document, sample in zip(documents, samples, strict=True):
        check_document(document, told["sample_fields"], ids)
        image = int(Path(document["filepath"]).stem)
        with Image.open(folder / document["filepath"]) as opened:
            np.testing.assert_array_equal(np.asarray(opened), pixels_of(exported_run, image))
        assert document["ground_truth"]["label"] == str(sample["label"])
        assert document["prediction"]["confidence"] == sample["confidence"]
        (box,) = (each["bounding_box"] for each in document["objects"]["detections"])
        assert [64 * side for side in (*box[:2], box[0] + box[2], box[1] + box[3])] == pytest.approx(
            sample["boxes"][0]
        )
        for name, field in zip(NAMES, told["info"]["explainers"], strict=True):
            assert told["info"]["explainers"][field] == name
            assert Path(document[field]["map_path"]).parent.as_posix() == f"fields/{field}"
            with Image.open(folder / document[field]["map_path"]) as opened:
                np.testing.assert_allclose(np.asarray(opened), grey(exported_run, name, image), atol=1)
            assert document[field]["range"] == [0, 255]
        assert document["occ_1_sparseness"] == scores(exported_run, "occ.1", "sparseness")[2 * image]


# ViRelAy


def test_virelay_gets_what_its_schema_says(exported_run: Run, tmp_path: Path) -> None:
    h5py, yaml = pytest.importorskip("h5py"), pytest.importorskip("yaml")
    folder = written(exported_run, "virelay", tmp_path)
    samples = [sample for sample in read_samples(exported_run.root) if sample["targets"]]
    rows = [row for row, sample in enumerate(read_samples(exported_run.root)) if sample["targets"]]
    labels = json.loads((folder / "label-map.json").read_text(encoding="utf-8"))
    assert [label["index"] for label in labels] == list(range(len(labels)))
    assert all(set(label) == {"index", "word_net_id", "name"} for label in labels)
    for name in NAMES:
        project = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))["project"]
        assert project["name"] == f"{exported_run.name}: {name}"
        assert project["dataset"]["type"] == "hdf5"
        assert project["attributions"]["attribution_strategy"] == "predicted_label"
        (source,) = project["attributions"]["sources"]
        with h5py.File(folder / project["dataset"]["path"]) as data, h5py.File(folder / source) as found:
            assert data["data"].shape == (6, 3, 64, 64)
            assert data["label"][:].tolist() == [sample["label"] for sample in samples]
            assert [each.decode() for each in data["sample_id"][:]] == [
                sample["sample_id"] for sample in samples
            ]
            assert found["index"][:].tolist() == list(range(6))
            assert found["label"][:].tolist() == [sample["target"] for sample in samples]
            for place, (row, sample) in enumerate(zip(rows, samples, strict=True)):
                np.testing.assert_array_equal(
                    np.moveaxis(data["data"][place], 0, -1), pixels_of(exported_run, row)
                )
                own = raw(exported_run, name, row)
                shown = found["attribution"][place].sum(0)
                np.testing.assert_allclose(
                    shown[:: len(shown) // len(own)][:, :: len(shown) // len(own)], own, rtol=1e-5, atol=1e-8
                )
                assert found["prediction"][place].argmax() == sample["prediction"]
                assert found["prediction"][place, sample["prediction"]] == pytest.approx(sample["confidence"])


def test_labels_of_virelay_are_bits_where_there_may_be_several(exported_run: Run) -> None:
    samples = [{"label": 1, "labels": [1, 3]}, {"label": None, "labels": []}, {"label": 2, "labels": [2]}]
    part = Part(exported_run, 0, samples, {}, 0, set())
    bits = _labels(part, [0, 1, 2], 4, several=True)
    assert [np.flatnonzero(row).tolist() for row in bits] == [[1, 3], [4], [2]]
    assert _labels(part, [0, 1, 2], 4, several=False).tolist() == [1, 4, 2]


def test_virelay_says_what_to_install(
    exported_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.export.virelay.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"^to: virelay needs an extra: pip install 'floodlit\[virelay\]'$"):
        written(exported_run, "virelay", tmp_path)
    assert not list(tmp_path.iterdir())


# Tables


def test_csv_is_read_with_its_types(exported_run: Run, tmp_path: Path) -> None:
    folder = written(exported_run, "csv", tmp_path)
    board = pandas.read_csv(folder / "leaderboard.csv")
    summary = pandas.read_csv(folder / "summary.csv")
    assert set(board["explainer"]) == set(NAMES)
    assert board.groupby("explainer")["control"].first().to_dict() == {
        name: name in NAMES[2:] for name in NAMES
    }
    both = board.merge(summary, on=["explainer", "metric"], suffixes=("", "_of_summary"))
    assert len(both) == len(board) > 0
    np.testing.assert_array_equal(both["mean"], both["mean_of_summary"])
    assert "excluded_by.failed" in summary
    asked = duckdb.sql(f"SELECT count(*) FROM '{folder}/comparisons.csv' WHERE p_holm <= 1").fetchall()
    assert asked[0][0] > 0
    assert "nan" not in (folder / "summary.csv").read_text().lower()


LATEX = shutil.which("pdflatex")


def test_latex_has_the_structure_of_a_table(exported_run: Run, tmp_path: Path) -> None:
    folder = written(exported_run, "latex", tmp_path)
    for name, across in (("leaderboard", 1), ("metrics", 6)):
        text = (folder / f"{name}.tex").read_text(encoding="utf-8")
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
        assert [text.count(rule) for rule in (r"\toprule", r"\bottomrule")] == [1, 1]
        # Braces are balanced, and no character of a name is a command.
        bare = re.sub(r"\\[\\{}&%$#_]", "", text)
        assert bare.count("{") == bare.count("}")
        assert r"100\% \textless{}digits\textgreater{} \& 漢字\_\$x" in text
        columns = re.search(r"\\begin\{tabular\}\{l(r+)\}", text)
        assert columns is not None
        cells = [line.count(" & ") for line in text.splitlines() if line.endswith(r"\\") and " & " in line]
        assert set(cells) == {len(columns[1])}
        assert len(columns[1]) >= across


@pytest.mark.skipif(LATEX is None, reason="pdflatex is not installed")
def test_latex_is_compiled(exported_run: Run, tmp_path: Path) -> None:
    folder = written(exported_run, "latex", tmp_path)
    page = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    page += r"\input{leaderboard}\input{metrics}\end{document}"
    (folder / "page.tex").write_text(page)
    subprocess.run([str(LATEX), "-halt-on-error", "page.tex"], cwd=folder, check=True, capture_output=True)
    assert (folder / "page.pdf").exists()
