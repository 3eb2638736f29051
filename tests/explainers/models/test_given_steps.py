"""What a job says about the size of inputs, in place of what the source does."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from explainers.models.given_steps import with_given_steps
from explainers.models.loading import ModelSpec, Preprocessing, preprocessing
from storage.datasets.geometry import prepare_image

RESNET = {"source": "torchvision", "name": "resnet18", "weights": "none"}  # short 256, crop 224


def steps(**keys):
    return preprocessing(ModelSpec(**RESNET, **keys))


@pytest.mark.parametrize(
    ("keys", "resize", "fit", "crop"),
    [
        ({}, 256, "short", 224),
        ({"resize": 230}, 230, "short", 224),
        ({"crop": [224, 200]}, 256, "short", (224, 200)),
        ({"resize": [48, 32]}, (48, 32), "squash", (48, 32)),
        ({"resize": [48, 32], "crop": 32}, (48, 32), "squash", 32),
        ({"resize": [48, 32], "fit": "contain"}, (48, 32), "contain", (48, 32)),
        ({"resize": [48, 32], "fit": "cover"}, (48, 32), "cover", (48, 32)),
        ({"resize": 64, "fit": "contain"}, 64, "contain", 64),
        ({"resize": 64, "fit": "squash", "crop": [64, 50]}, 64, "squash", (64, 50)),
        ({"resize": 300, "fit": "short", "crop": 300}, 300, "short", 300),
    ],
)
def test_the_jobs_size_stands_in_place_of_the_sources(keys, resize, fit, crop):
    found = steps(**keys)
    assert (found.resize, found.fit, found.crop) == (resize, fit, crop)
    assert found.mean == (0.485, 0.456, 0.406)  # all else stays the source's


def test_the_sources_colour_of_padding_does_not_stay_with_another_size():
    padded = Preprocessing(64, 64, fit="contain", fill=(124, 116, 104))
    assert with_given_steps(padded, ModelSpec(**RESNET)) == padded
    assert with_given_steps(padded, ModelSpec(**RESNET, resize=[40, 20], fit="contain")).fill == (0, 0, 0)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"fit": "squash"}, "model.fit: .*give resize as well"),
        ({"fit": "contain", "crop": 32}, "model.fit: .*give resize as well"),
        ({"resize": [48, 32], "fit": "short"}, "model.resize: 48x32 is not the length of one side"),
        ({"resize": [48, 32], "crop": 40}, "model.crop: 40 pixels do not fit into model.resize = 48x32"),
        ({"resize": 40, "fit": "cover", "crop": [41, 2]}, "model.crop: 41x2 pixels do not fit .* = 40"),
        ({"resize": 32, "crop": [48, 32]}, "model.crop: 48x32 pixels do not fit into model.resize = 32"),
        ({"resize": 100}, "model.crop: 224 pixels do not fit into model.resize = 100"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(keys, told):
    with pytest.raises(ValueError, match=f"^{told}") as refusal:
        steps(**keys)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("wrong", [0, 8193, [3], [3, 4, 5], [0, 3], [3.0, 4], "3", True, ["3", "4"]])
@pytest.mark.parametrize("key", ["resize", "crop"])
def test_a_side_is_a_whole_number_or_two(key, wrong):
    with pytest.raises(ValidationError, match=rf"{key}\n.*\[height, width\] or a whole number from 1"):
        ModelSpec(**RESNET, **{key: wrong})


def test_a_letterbox_keeps_the_whole_image_and_its_boxes_between_black_bars():
    # 60x30 pixels into 48 rows and 32 columns: 32 columns and 16 rows, with 16 black rows above and below.
    image = Image.new("RGB", (60, 30), (255, 255, 255))
    geometry = Preprocessing(resize=(48, 32), fit="contain", crop=(48, 32)).geometry
    pixels, boxes = prepare_image(image, [(0, 0, 60, 30), (15, 0, 30, 15)], **geometry)
    assert pixels.shape == (3, 48, 32)
    white = np.flatnonzero(pixels.all((0, 2)))
    assert (white[0], white[-1], len(white)) == (16, 31, 16)
    assert not pixels[:, :16].any()
    assert boxes == [
        pytest.approx((0, 16, 32, 32)),
        pytest.approx((8, 16, 16, 24)),
    ]
