"""The demo's texts and their classifier are what the script makes, and PAMI finds what decides them."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from explainers.base import Batch
from explainers.models.loading import ModelSpec, load
from explainers.pami import Pami
from places import ROOT, program

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def reviews() -> ModuleType:
    return program("examples/reviews.py")


def test_texts_repeat_and_no_text_is_in_both_splits(reviews: ModuleType) -> None:
    train = [reviews.review("train", index) for index in range(500)]
    test = [reviews.review("test", index) for index in range(500)]
    assert train == [reviews.review("train", index) for index in range(500)]
    assert train != [reviews.review("train", index, 1) for index in range(500)]
    assert not {one.text for one in train} & {one.text for one in test}


def test_the_evidence_occurs_once_and_only_where_there_is_a_judgement(reviews: ModuleType) -> None:
    for index in range(500):
        one = reviews.review("test", index)
        assert (one.evidence == "") == (one.label == reviews.NEUTRAL)
        if one.evidence:
            assert one.text.lower().count(one.evidence) == 1
        assert 10 <= len(one.text.replace(".", " .").replace(",", " ,").split()) <= 30


def test_the_committed_texts_are_the_scripts(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "reviews.py"), "texts", str(tmp_path / "texts.csv")]
    subprocess.run([*command, "--count", "300"], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "texts.csv").read_bytes() == (EXAMPLES / "reviews.csv").read_bytes()


def test_the_committed_classifier_reaches_its_accuracy_and_pami_points_at_the_evidence(
    reviews: ModuleType,
) -> None:
    spec = ModelSpec(
        source="huggingface", name=str(EXAMPLES / "weights/reviews"), weights="pretrained", max_length=40
    )
    fresh = [reviews.review("test", index, seed=1) for index in range(300)]
    with load(spec, modality="text") as classifier, torch.inference_mode():
        encoded = [classifier.encode(one.text) for one in fresh]
        inputs = torch.stack([torch.from_numpy(array) for array, _, _ in encoded]).long()
        predicted = classifier.logits(inputs).argmax(1)
        labels = torch.tensor([one.label for one in fresh])
        assert float((predicted == labels).float().mean()) > 0.97
        judged = [i for i, one in enumerate(fresh) if one.evidence and predicted[i] == one.label][:60]
        batch = Batch(inputs[judged], predicted[judged], torch.arange(len(judged)))
        best = Pami(classifier, Pami.Parameters()).explain(batch).maps.argmax(1).tolist()
    hits = 0
    for row, site in zip(judged, best, strict=True):
        tokens = encoded[row][1]
        word = tokens[site].removeprefix("##")
        hits += any(word in part for part in fresh[row].evidence.split())
    assert hits >= 0.9 * len(judged)


def test_the_committed_csv_has_the_columns_the_job_reads() -> None:
    with (EXAMPLES / "reviews.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    assert {row["label"] for row in rows} == {"negative", "neutral", "positive"}
