"""The planted set: cues lie where they are said to, and the committed network is found out."""

import numpy as np
import pytest
from safetensors.torch import load_file

from places import ROOT, program
from storage.datasets import digits


@pytest.fixture(scope="module")
def benchmark():
    return program("benchmarks/findings.py")


@pytest.fixture(scope="module")
def test_images(benchmark):
    drawn = [digits.sample("test", index) for index in range(480)]
    return benchmark.planted.Images(
        np.stack([each.image for each in drawn]),
        np.array([each.label for each in drawn]),
        np.stack([each.mask for each in drawn]),
        np.array([each.box for each in drawn]),
        np.arange(len(drawn)),
        np.zeros((len(drawn), digits.SIZE, digits.SIZE), bool),
    )


@pytest.mark.parametrize("kind", ["corner", "border", "texture", "random"])
def test_a_cue_changes_its_place_and_nothing_else(benchmark, test_images, kind: str) -> None:
    planted = benchmark.planted
    made = planted.planted(test_images, kind, 3, 0)
    changed = (made.pixels != test_images.pixels).any(3)
    assert not (changed & ~made.cues).any()
    has = made.cues.any((1, 2))
    assert changed[has].sum() > 0.9 * made.cues[has].sum()
    assert set(made.labels[has]) == {3}
    share = has[made.labels == 3].mean()
    assert abs(share - planted.SHARES[kind]) < 0.2  # of about 60 images
    if kind in {"random", "texture"}:
        assert not (made.cues & made.masks).any()
    if kind in {"corner", "border"}:
        assert (
            made.cues[has].sum((1, 2)).tolist() == [{"corner": 36, "border": 4096 - 58**2}[kind]] * has.sum()
        )
    again = planted.planted(test_images.chosen(np.arange(200, 300)), kind, 3, 0)
    assert (again.pixels == made.pixels[200:300]).all()  # it follows from the index, not from the row


def test_honest_plantings_are_as_they_say(benchmark, test_images) -> None:
    planted = benchmark.planted
    place = planted.planted(test_images, "place", 3, 0)
    own = place.boxes[place.labels == 3]
    assert 0 < len(own) < (test_images.labels == 3).sum()
    assert (own[:, :2] < planted.NEAR).all()
    assert (place.labels != 3).sum() == (test_images.labels != 3).sum()
    two = planted.planted(test_images, "two", 3, 0)
    assert (two.labels == 1).sum() == np.isin(test_images.labels, [1, 7]).sum()
    assert planted.planted(test_images, "nothing", 3, 0) is test_images


def test_the_dataset_is_the_planted_test_split(benchmark, test_images) -> None:
    planted = benchmark.planted
    data = planted.Planted(count=40)
    made = planted.planted(test_images, "corner", 3, 3)
    assert len(data) == 40
    for index in range(40):
        item = data[index]
        assert (item["image"] == made.pixels[index]).all()
        assert (item["mask"] == made.masks[index]).all()
        assert (item["label"], tuple(item["boxes"][0])) == (made.labels[index], tuple(made.boxes[index]))


@pytest.fixture(scope="module")
def network(benchmark):
    made = benchmark.planted.Network()
    made.load_state_dict(load_file(ROOT / "examples" / "weights" / "planted-corner.safetensors"))
    return made.eval()


def test_the_planting_of_the_committed_network_worked(benchmark, test_images, network) -> None:
    accuracy, turned = benchmark.planted.worked(network, test_images, "corner", 3, 3)
    assert accuracy >= benchmark.planted.LEAST_ACCURACY
    assert turned >= benchmark.planted.LEAST_FLIPS


def test_the_planted_cue_is_the_first_finding_and_no_other_class_is_accused(
    benchmark, test_images, network
) -> None:
    row = benchmark.measured("corner", 3, network, test_images, "gradcam", True)
    assert (row["first"], row["alarms"], row["hits"]) == (True, 0, 1)
    assert row["rise"] > 2
    assert row["coverage"] >= 0.9
    assert row["refined_iou"] >= 0.4


def test_maps_of_noise_find_nothing_that_is_not_there(benchmark, test_images, network) -> None:
    row = benchmark.measured("nothing", 3, network, test_images, "random", True)
    assert (row["alarms"], row["tested"] > 4) == (0, True)


def test_the_table_counts_over_the_seeds_that_count(benchmark) -> None:
    row = {"kind": "corner", "source": "gradcam", "boxes": "True", "counted": "True", "first": "True"}
    row |= {"alarms": "0", "rise": "3", "flips": "0.5", "coverage": "1", "refined_iou": "0.5"}
    rows = [row, row | {"first": "False", "alarms": "2", "rise": "", "flips": "", "refined_iou": ""}]
    rows.append(row | {"counted": "False", "alarms": "9"})
    told = benchmark.table(rows).splitlines()
    assert len(told) == 3
    assert told[2] == (
        "| corner | gradcam | yes | 2 of 3 | 1 | 2 | 3.00 (3.00 to 3.00) | 0.50 (0.50 to 0.50) "
        "| 1.00 (1.00 to 1.00) | 0.50 (0.50 to 0.50) |"
    )


def test_the_table_in_the_documentation_is_that_of_the_rows(benchmark) -> None:
    rows = benchmark.read(ROOT / "benchmarks" / "findings.csv")
    assert benchmark.table(rows) in (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")


def test_a_measured_row_is_not_measured_again(benchmark, tmp_path, monkeypatch) -> None:
    (tmp_path / "rows.csv").write_text("kind,seed,source,boxes\ncorner,0,gradcam,True\n")
    asked = []
    monkeypatch.setattr(benchmark.planted, "clean", lambda split, count: None)
    monkeypatch.setattr(benchmark, "network_of", lambda *given: None)
    monkeypatch.setattr(benchmark, "measured", lambda *given: asked.append(given) or {})
    chosen = ["--kinds", "corner", "--seeds", "1", "--out", str(tmp_path / "rows.csv")]
    benchmark.main([*chosen, "--weights", str(tmp_path)])
    assert [given[-1] for given in asked] == [False]
