"""Where the names of a model's classes come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
from torchvision import models

from explainers.models.class_names import ClassName, class_names, names_of_labels, read_names
from explainers.models.model_spec import ModelSpec
from places import REAL

TENCH = ClassName("tench", ("Tinca tinca",), "n01440764")


def names(source: str, name: str, classes: int, weights: str = "w.pth") -> tuple[ClassName, ...] | None:
    return class_names(ModelSpec(source=source, name=name, weights=weights), classes)


@pytest.mark.parametrize("weights", ["w.pth", "none", "IMAGENET1K_V1"])
def test_torchvision_has_its_categories_with_imagenets_synsets(weights: str) -> None:
    found = names("torchvision", "mobilenet_v2", 1000, weights)
    assert found is not None
    entry = models.get_model_weights("mobilenet_v2")["IMAGENET1K_V1"]
    assert [one.name for one in found] == entry.meta["categories"]
    assert {number: found[number].synset for number in (0, 207, 281, 574, 999)} == {
        0: "n01440764",
        207: "n02099601",
        281: "n02123045",
        574: "n03445777",
        999: "n15075141",
    }
    # The two lists are in the same order: torchvision's name is one of timm's but for two classes.
    other = [one.name for one in found if one.name.lower() not in [name.lower() for name in one.synonyms]]
    assert other == ["crane bird", "maillot tank suit"]


def test_every_published_classifier_of_torchvision_has_the_same_categories() -> None:
    lists = {
        tuple(entry.meta["categories"])
        for name in models.list_models(module=models)
        for entry in models.get_model_weights(name)
        if entry.meta["categories"]
    }
    assert len(lists) == 1


@pytest.mark.parametrize(
    ("classes", "first", "last"),
    [
        (1000, "n01440764", "n15075141"),
        (11821, "n00005787", "n15102894"),
        (21841, "n00004475", "n15102894"),
        (21843, "n00004475", "n15102894"),
        (11221, "n00005787", "n15102894"),
        (21842, "n01440764", "n15102894"),
    ],
)
def test_timm_has_the_part_of_imagenet_with_as_many_classes(classes: int, first: str, last: str) -> None:
    found = names("timm", "resnet18", classes)
    assert found is not None
    assert (len(found), found[0].synset, found[-1].synset) == (classes, first, last)
    assert all(one.name and one.synset for one in found)


def test_another_number_of_classes_has_no_names() -> None:
    assert names("timm", "resnet18", 200) is None
    assert names("torchvision", "resnet18", 200) is None
    assert names("package.module:callable", "resnet18", 1000) is None
    assert timm.get_pretrained_cfg("resnet18").num_classes == 1000


def test_prompts_name_the_classes_of_a_clip_model() -> None:
    spec = ModelSpec(source="open_clip", name="RN50", weights="none", classes=("dog", "a cat, asleep"))
    assert class_names(spec, 2) == (ClassName("dog"), ClassName("a cat, asleep"))


def test_hugging_faces_own_labels_count_and_made_up_ones_do_not() -> None:
    assert names_of_labels({0: "joy, happiness", 1: "anger"}, 2) == (
        ClassName("joy", ("happiness",)),
        ClassName("anger"),
    )
    assert names_of_labels({0: "LABEL_0", 1: "LABEL_1"}, 2) is None
    assert names_of_labels({0: "joy"}, 2) is None


def test_a_file_has_synsets_names_or_both(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\ufeffn01440764\r\nn02123045 tabby, tabby cat\nmy own thing, mine\nn99999999\n\n")
    assert read_names(file, 4) == (
        TENCH,
        ClassName("tabby", ("tabby cat",), "n02123045"),
        ClassName("my own thing", ("mine",)),
        ClassName("n99999999", (), "n99999999"),
    )
    spec = ModelSpec(source="m:f", class_names="names.txt").relative_to(tmp_path)
    assert spec.class_names == str(file)
    assert (class_names(spec, 4) or ())[0] == TENCH


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a\nb", "has 2 lines, but the model has 3 classes; write one line per class"),
        (b"", "has 1 lines, but the model has 3 classes"),
        (b"a\n\nc", ", line 2 has no name"),
        (b"a\nb\n, ,", ", line 3 has no name"),
        (b"a\nb\x1b[31m\nc", ", line 2 has a character that cannot be printed"),
        (b"a\nb\ncaf\xe9", "is not a text in UTF-8"),
        (None, "there is no file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(content: bytes | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    if content is None:
        os.mkfifo(file)  # reading it would never end
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^model\.class_names: ") as refused:
        read_names(file, 3)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_order_of_a_published_network_of_200_classes_is_read() -> None:
    order = REAL / "weights/vit_tiny_tinyimagenet200_class_order.txt"
    if not order.is_file():
        pytest.skip(f"no real test material in {REAL}; FLOODLIT_REAL says where it is")
    found = read_names(order, 200)
    assert (found[0].name, found[0].synset, len(set(found))) == ("goldfish", "n01443537", 200)
