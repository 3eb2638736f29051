"""Runs whose inputs are texts or numbers, through the tasks: store, scores and queries as of images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

import text_toys
from flows.job import JobError
from runs import assert_same_results, explained, prepared, tiny_job
from storage.query import query
from storage.run import Run
from storage.samples import merge_samples
from storage.verify import verify
from tasks.scores import scores

TEXTS = [
    "The film was good.",
    "Unbelievable!",
    "",
    "a very dull film, a bad plot, a very dull film, a bad plot",
    "not bad",
]
METRICS = [{"name": name} for name in ("insertion", "deletion", "average_drop", "sparseness")]


def text_job(folder: Path, store: str = "run", **changes: Any) -> dict[str, Any]:
    """Five texts, of which the third is empty and the fourth is longer than the model takes."""
    if not (folder / "model").exists():
        text_toys.saved(folder / "model", "bert")
        with (folder / "texts.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *([text, "1"] for text in TEXTS)])
    job = {
        "dataset": {"kind": "text", "path": str(folder / "texts.csv")},
        "model": {
            "source": "huggingface",
            "name": str(folder / "model"),
            "weights": "pretrained",
            "max_length": 12,
        },
        "explainers": [{"name": "pami"}],
        "metrics": METRICS,
        "batch": {"shard": 2, "images": 2, "forwards": 7},
    }
    return tiny_job(folder / store, **job | changes)


def scored(run: Run) -> Run:
    explained(run)
    for shard in range(run.shards):
        for name in run.explainers:
            scores.fn(str(run.root), shard, name)
    merge_samples(run.root, run.shards)
    return run


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scored(prepared(text_job(tmp_path_factory.mktemp("texts"))))


def test_a_text_is_a_row_of_tokens_and_its_map_has_one_value_a_token(texts: Run) -> None:
    assert (texts.modality, texts.input_size) == ("text", (12,))
    assert set(texts.explainers) == {"pami", "random", "all_ones"}
    stored = zarr.open_array(str(texts.inputs), mode="r")
    assert (stored.dtype, stored.shape) == (np.int32, (5, 2, 12))
    maps = zarr.open_array(str(texts.saliency("pami") / "maps"), mode="r")[:]
    assert maps.shape == (5, 12)
    words = stored[:, 1]
    for row in (0, 1, 3, 4):
        assert (maps[row][words[row] >= 0] > 0).all()
        assert (maps[row][words[row] < 0] == 0).all()
    assert np.isnan(maps[2]).all()
    assert [str(problem.path) for problem in verify(texts.root)] == ["samples.parquet"], "it is not signed"


def test_samples_say_what_the_model_read(texts: Run) -> None:
    first, second, empty, long, _ = pq.read_table(texts.samples).to_pylist()
    assert first["text"] == TEXTS[0]
    assert first["tokens"] == ["[CLS]", "the", "film", "was", "good", ".", "[SEP]"]
    assert first["width"] == 7
    assert [token.removeprefix("##") for token in second["tokens"][1:4]] == ["un", "believ", "able"]
    assert (empty["status"], empty["target"]) == ("failed", None)
    assert "empty" in empty["error"]
    assert (long["width"], len(long["tokens"])) == (19, 12)
    assert all(sample["label"] == 1 for sample in (first, second, empty, long))


def test_every_label_of_a_text_is_explained(tmp_path: Path) -> None:
    job = text_job(tmp_path, target="labels", explainers=[{"name": "erasure"}], controls=False)
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["text", "labels"], ["good film", "1;0"], ["a bad plot", "0"], ["dull", ""]]
        )
    run = scored(prepared(job))
    targets = query(run.root, "SELECT targets FROM samples")["targets"].to_pylist()
    assert targets == [[1, 0], [0], []]
    rows = query(run.root, "SELECT target, status FROM scores WHERE metric = 'sparseness'").to_pylist()
    assert [(row["target"], row["status"] == "no_label") for row in rows] == [
        *[(1, False), (0, False), (0, False)],
        *[(None, True)] * 3,
    ]


def test_texts_take_maps_of_another_program(texts: Run, tmp_path: Path) -> None:
    stored = zarr.open_array(str(texts.saliency("pami") / "maps"), mode="r")[:]
    np.save(tmp_path / "maps.npy", stored)
    np.save(tmp_path / "coarse.npy", stored[:, None, :4])
    entries = [
        {"name": "maps", "path": str(tmp_path / "maps.npy")},
        {"name": "maps", "label": "coarse", "path": str(tmp_path / "coarse.npy"), "grid": [4]},
    ]
    job = text_job(tmp_path, explainers=entries, controls=False)
    run = scored(prepared(job))
    for name, length in (("maps", 12), ("coarse", 4)):
        found = zarr.open_array(str(run.saliency(name) / "maps"), mode="r")[:]
        np.testing.assert_array_equal(found, stored[:, :length])
    where = "SELECT sample_id, metric, value FROM scores WHERE explainer = '{}' ORDER BY 1, 2"
    own, given = (query(each.root, where.format(n)) for each, n in ((texts, "pami"), (run, "maps")))
    assert given.equals(own)
    for changes, told in (
        (
            {"path": str(tmp_path / "coarse.npy")},
            r"the maps have 4 values, and the network's inputs 12 sites",
        ),
        ({"path": str(tmp_path / "maps.npy"), "covers": "image"}, r'covers: "image" is for images, and the'),
    ):
        wrong = job | {"store": str(tmp_path / "other"), "explainers": [{"name": "maps", **changes}]}
        with pytest.raises(JobError, match=told):
            prepared(wrong)


def test_every_text_has_its_scores_and_a_damaged_one_none(texts: Run) -> None:
    rows = query(
        texts.root,
        "SELECT sample_id, metric, value, forward_passes FROM scores WHERE explainer = 'pami' ORDER BY 1, 2",
    ).to_pylist()
    metrics = {row["metric"] for row in rows}
    assert metrics == {
        "insertion",
        "deletion",
        "sparseness",
        "average_drop_50",
        "average_drop_15",
        "increase_in_confidence_50",
        "increase_in_confidence_15",
        "average_gain_50",
        "average_gain_15",
    }
    assert {row["sample_id"] for row in rows if row["value"] is None} == {"000002"}
    # "not bad" has the windows of one token, and one of both: 1 + 1 + 1.
    assert {row["forward_passes"] for row in rows if row["sample_id"] == "000004"} == {3}


def test_neither_shards_nor_batches_change_a_texts_results(texts: Run, tmp_path: Path) -> None:
    job = text_job(texts.root.parent, store=str(tmp_path / "other"))
    other = scored(prepared(job | {"batch": {"shard": 16, "images": 5, "forwards": 64}}))
    assert_same_results(texts.root, other.root)


def tensor_job(folder: Path, rows: np.ndarray, **changes: Any) -> dict[str, Any]:
    np.savez(folder / "rows.npz", inputs=rows, labels=np.ones(len(rows), int))
    job = {
        "dataset": {"kind": "tensors", "path": str(folder / "rows.npz")},
        "model": {"source": "sequences:series", "weights": "none"},
        "explainers": [{"name": "pami", "windows": [1]}],
        "metrics": METRICS,
        "target": 1,
        "batch": {"shard": 3},
    }
    return tiny_job(folder / "run", **job | changes)


def test_a_series_is_explained_where_it_counts(tmp_path: Path) -> None:
    """A step alone is worth 3 x at steps 2 and 3 of channel 1, and nothing elsewhere."""
    rows = np.random.default_rng(0).random((5, 3, 8)).astype(np.float32) + 0.1
    rows[3, 0, 5] = np.inf
    run = scored(prepared(tensor_job(tmp_path, rows)))
    assert (run.modality, run.input_size) == ("tensor", (8,))
    maps = zarr.open_array(str(run.saliency("pami") / "maps"), mode="r")[:]
    assert set(np.argsort(-maps[[0, 1, 2, 4]])[:, :2].ravel()) == {2, 3}
    expected = 1 / (1 + np.exp(-3 * rows[0, 1, 2:4]))
    np.testing.assert_allclose(maps[0, 2:4], expected, rtol=1e-5)
    np.testing.assert_allclose(maps[0, :2], 0.5)
    samples = pq.read_table(run.samples).to_pylist()
    assert [sample["status"] for sample in samples] == ["ok", "ok", "ok", "failed", "ok"]
    means = query(
        run.root, "SELECT explainer, avg(value) v FROM scores WHERE metric = 'insertion' GROUP BY 1"
    )
    found = {row["explainer"]: row["v"] for row in means.to_pylist()}
    assert found["pami"] > max(found["random"], found["all_ones"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"explainers": [{"name": "gradcam"}]},
            "gradcam explains images, and the dataset's inputs are texts",
        ),
        ({"explainers": [{"name": "sobel"}]}, "sobel explains images"),
        ({"explainers": [{"name": "pami", "fill": "blur"}]}, "pami: fill: 'blur' is not for texts"),
        (
            {"metrics": [{"name": "pointing_game"}]},
            "pointing_game scores maps of images, but .* are texts",
        ),
        ({"metrics": [{"name": "insertion", "fill": "blur"}]}, "insertion: fill: 'blur' is not for texts"),
        ({"target": 3}, "3 is not a class of the model; choose 0 to 2"),
    ],
)
def test_what_texts_do_not_have_is_refused_before_the_start(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=told):
        prepared(text_job(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_labels_by_name_become_the_models_numbers(tmp_path: Path) -> None:
    """The toy's classes are named x, a, m; the dataset numbers a, m, x."""
    text_toys.saved(
        tmp_path / "model", "bert", id2label={0: "x", 1: "a", 2: "m"}, label2id={"x": 0, "a": 1, "m": 2}
    )
    lines = [["text", "label"], ["the film", "X"], ["a plot", "a"], ["very dull", "m"]]
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    run = scored(prepared(text_job(tmp_path, target="label")))
    rows = pq.read_table(run.samples).to_pylist()
    assert [row["label"] for row in rows] == [row["target"] for row in rows] == [0, 1, 2]
    assert [row["label_name"] for row in rows] == [row["target_names"][0] for row in rows] == ["x", "a", "m"]
    assert [row["prediction_name"] for row in rows] == ["xam"[row["prediction"]] for row in rows]


def test_a_blank_row_and_a_literal_end_token_do_not_disturb_a_network_that_looks_for_it(
    tmp_path: Path,
) -> None:
    """BART takes its answer from the last </s>, and refuses texts with different numbers of them."""
    text_toys.saved(tmp_path / "model", "bart")
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], ["the film"], [" "], ["the </s> plot"]])
    run = scored(prepared(text_job(tmp_path)))
    statuses = [sample["status"] for sample in pq.read_table(run.samples).to_pylist()]
    assert statuses == ["ok", "failed", "ok"]
