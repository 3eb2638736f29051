"""Inputs are those of each source's own transform, pixel for pixel, for every way to resize and crop."""

from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform
from torchvision.models import get_model_weights
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.v2.functional import center_crop, resize
from transformers import (
    BeitImageProcessor,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    ConvNextImageProcessor,
    ConvNextImageProcessorPil,
    DeiTImageProcessor,
    EfficientNetImageProcessor,
    LevitImageProcessor,
    MobileNetV2ImageProcessor,
    MobileViTImageProcessor,
    PerceiverImageProcessor,
    PoolFormerImageProcessor,
    SegformerImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
    ViTImageProcessorPil,
)

from explainers.models.loading import ModelSpec, preprocessing
from explainers.models.transforms import (
    UnreadableStepsError,
    of_processor,
    of_steps,
    of_torchvision,
)
from storage.datasets.geometry import of_masks, prepare_image

# Widths and heights: portrait, landscape, square, odd, thin, as large as a crop, and smaller than it.
SIDES = (3, 17, 31, 64, 71, 96, 101)
SIZES = [(w, h) for w in SIDES for h in SIDES] + [(240, 7)]
HALF, MEAN, STD = (0.5,) * 3, (0.2, 0.4, 0.6), (0.3, 0.2, 0.1)


def noise(width, height):
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_there_are_fifty_sizes():
    assert len(set(SIZES)) == 50


def check(steps, source, sizes=SIZES):
    """Compare inputs with those of ``source``, which gives uint8 pixels and the normalised tensor."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (steps.mean, steps.std))
    for width, height in sizes:
        image = noise(width, height)
        pixels, (whole,) = prepare_image(image, [(0, 0, width, height)], **steps.geometry)
        expected, normalised = source(image)
        assert np.array_equal(pixels, expected), (width, height)
        found = (torch.from_numpy(pixels) / 255 - mean) / std
        torch.testing.assert_close(found, normalised, rtol=1e-5, atol=1e-5)
        assert steps.size in (None, pixels.shape[1:])
        assert min(whole) >= 0
        assert max(whole[0::2]) <= pixels.shape[2]


def composed(transform):
    """What timm or open_clip gives: the pixels before they become a tensor, and the end."""

    def source(image):
        pixels = image
        for step in transform.transforms:
            if type(step).__name__ in {"MaybeToTensor", "ToTensor"}:
                break
            pixels = step(pixels)
        return np.asarray(pixels).transpose(2, 0, 1), transform(image)

    return source


# timm


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
@pytest.mark.parametrize(
    ("share", "interpolation"), [(1.0, "bicubic"), (0.875, "bilinear"), (0.9, "bicubic")]
)
def test_timms_crop_modes(mode, size, share, interpolation):
    how = {"crop_mode": mode, "crop_pct": share, "interpolation": interpolation, "mean": MEAN, "std": STD}
    transform = create_transform(input_size=(3, *size), is_training=False, **how)
    thin = mode == "border"  # timm itself cannot resize 240x7 pixels to a height of less than one
    steps = of_steps(transform.transforms, MEAN, STD)
    assert steps.fit == {"center": "short" if size[0] == size[1] else "cover", "border": "contain"}.get(
        mode, mode
    )
    check(steps, composed(transform), SIZES[:-1] if thin else SIZES)


@pytest.mark.parametrize(
    "name",
    [
        "convnext_base.fb_in22k_ft_in1k_384",  # squashed
        "vit_base_patch16_siglip_224.webli",
        "resnet18.a1_in1k",
        "tiny_vit_21m_512.dist_in22k_ft_in1k",
    ],
)
def test_timm_weights_get_what_their_configuration_says(name):
    settings = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    steps = preprocessing(ModelSpec(source="timm", name=name, weights="none"))
    assert steps.fit == {"squash": "squash", "center": "short"}[settings["crop_mode"]]
    check(steps, composed(create_transform(**settings, is_training=False)), [(90, 40), (41, 700), (384, 384)])


def test_all_published_timm_weights_can_be_read():
    fits = set()
    for name in timm.list_pretrained()[::7]:
        settings = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        steps = of_steps(create_transform(**settings, is_training=False).transforms, HALF, HALF)
        assert steps.size == settings["input_size"][1:]
        fits.add(steps.fit)
    assert fits >= {"short", "squash"}


# open_clip


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [64, (48, 72), (72, 48)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_open_clips_resize_modes(mode, size, interpolation):
    settings = {"resize_mode": mode, "size": size, "interpolation": interpolation, "fill_color": 77}
    transform = image_transform_v2(PreprocessCfg(**settings, mean=MEAN, std=STD), is_train=False)
    steps = of_steps(transform.transforms, MEAN, STD)
    check(steps, composed(transform), SIZES[:-1] if mode == "longest" else SIZES)
    assert steps.fill == ((77,) * 3 if mode == "longest" else (0, 0, 0))


def test_open_clip_weights_are_prepared_as_the_library_prepares_them():
    name, tag = "ViT-B-16-SigLIP", "webli"
    steps = preprocessing(ModelSpec(source="open_clip", name=name, weights=tag, classes=("cat", "dog")))
    settings = open_clip.get_pretrained_cfg(name, tag)
    own = {key: settings[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    transform = image_transform_v2(PreprocessCfg(size=224, **own), is_train=False)
    check(steps, composed(transform), [(90, 40), (300, 301)])


# torchvision


def preset(transform):
    def source(image):
        size = transform.resize_size
        resized = resize(image, size, interpolation=transform.interpolation, antialias=True)
        return np.asarray(center_crop(resized, transform.crop_size)).transpose(2, 0, 1), transform(image)

    return source


@pytest.mark.parametrize(
    ("resized", "cropped"), [([72], [64]), ([64], [72]), ([48, 80], [48, 64]), ([48, 48], [48])]
)
def test_torchvisions_presets(resized, cropped):
    transform = ImageClassification(crop_size=0, mean=MEAN, std=STD)
    transform.resize_size, transform.crop_size = resized, cropped
    check(of_torchvision(transform), preset(transform))


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_b4"])
def test_torchvision_weights_get_their_own_transform(name):
    for entry in get_model_weights(name):
        steps = preprocessing(ModelSpec(source="torchvision", name=name, weights=entry.name))
        check(steps, preset(entry.transforms()), [(90, 40), (500, 375)])


# Hugging Face


def by(processor):
    def source(image):
        raw = {"do_rescale": False, "do_normalize": False}
        if isinstance(processor, EfficientNetImageProcessor):
            raw["include_top"] = False  # it normalises once more
        pixels = processor(image, **raw, return_tensors="pt").pixel_values[0]
        return pixels.numpy(), processor(image, return_tensors="pt").pixel_values[0]

    return source


SQUARE, OBLONG = {"height": 64, "width": 64}, {"height": 48, "width": 72}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (CLIPImageProcessor, {"size": {"shortest_edge": 72}, "crop_size": SQUARE}),
        (CLIPImageProcessor, {"size": {"shortest_edge": 50}, "crop_size": OBLONG, "resample": 2}),
        (CLIPImageProcessor, {"do_resize": False, "crop_size": OBLONG}),
        (CLIPImageProcessor, {"size": {"shortest_edge": 40}, "do_center_crop": False, "resample": 0}),
        (CLIPImageProcessor, {"size": OBLONG, "crop_size": SQUARE, "resample": 1}),
        (CLIPImageProcessor, {"size": SQUARE, "crop_size": SQUARE, "do_normalize": False}),
        (CLIPImageProcessor, {"size": SQUARE, "rescale_factor": 1 / 127.5, "do_center_crop": False}),
        (CLIPImageProcessorPil, {"size": {"shortest_edge": 72}, "crop_size": {"height": 63, "width": 80}}),
        (ViTImageProcessor, {"size": OBLONG}),
        (ViTImageProcessorPil, {"size": OBLONG}),
        (SiglipImageProcessor, {"size": SQUARE}),
        (DeiTImageProcessor, {"size": {"height": 73, "width": 73}, "crop_size": SQUARE}),
        (ConvNextImageProcessor, {"size": {"shortest_edge": 64}}),
        (ConvNextImageProcessor, {"size": {"shortest_edge": 70}, "crop_pct": 0.95}),
        (ConvNextImageProcessorPil, {"size": {"shortest_edge": 64}}),
        # These have steps of their own, which do what standard ones do with other settings.
        (BeitImageProcessor, {"size": {"height": 73, "width": 73}, "crop_size": SQUARE}),
        (SegformerImageProcessor, {"size": OBLONG}),
        (MobileNetV2ImageProcessor, {"size": {"shortest_edge": 72}, "crop_size": SQUARE}),
        (LevitImageProcessor, {"size": {"shortest_edge": 64}, "crop_size": SQUARE}),
        (PoolFormerImageProcessor, {"size": {"shortest_edge": 64}, "crop_pct": 0.8, "crop_size": SQUARE}),
        (EfficientNetImageProcessor, {"size": OBLONG, "image_std": (0.5, 0.4, 0.3)}),
    ],
)
def test_hugging_faces_image_processors(kind, settings):
    processor = kind(**settings)
    check(of_processor(processor), by(processor))


def test_convnexts_image_processor_squashes_from_384_pixels_on():
    processor = ConvNextImageProcessor(size={"shortest_edge": 384})
    steps = of_processor(processor)
    assert (steps.fit, steps.resize, steps.size) == ("squash", 384, (384, 384))
    check(steps, by(processor), [(90, 40), (41, 700)])


def test_values_that_a_processor_lacks_are_taken_from_the_job():
    processor = CLIPImageProcessor()
    processor.image_mean = processor.image_std = None
    with pytest.raises(UnreadableStepsError, match="states no mean"):
        of_processor(processor)
    found = of_processor(processor, MEAN, STD)
    assert (found.mean, found.std) == (MEAN, STD)


# What cannot be read


class Darkened(CLIPImageProcessor):
    """A processor that does something to bright images alone."""

    def _preprocess(self, images, *args, **kwargs):
        images = [image // 2 if image.float().mean() > 100 else image for image in images]
        return super()._preprocess(images, *args, **kwargs)


@pytest.mark.parametrize("kind", [MobileViTImageProcessor, PerceiverImageProcessor, Darkened])
def test_steps_of_its_own_that_do_something_else_are_refused(kind):
    with pytest.raises(UnreadableStepsError, match=f"steps of its own, {kind.__name__}$"):
        of_processor(kind())


def test_unknown_steps_are_named():
    transform = create_transform(input_size=64, is_training=False, crop_border_pixels=4)
    with pytest.raises(UnreadableStepsError, match="TrimBorder"):
        of_steps(transform.transforms, HALF, HALF)
    with pytest.raises(UnreadableStepsError, match="SimpleNamespace"):
        of_torchvision(SimpleNamespace(resize_size=[1], crop_size=[1]))
    with pytest.raises(UnreadableStepsError, match=r"\(0.5, nan, 0.5\) as mean"):
        of_steps([], (0.5, float("nan"), 0.5), HALF)


# Boxes and masks

MODES = [
    (mode, size, share)
    for mode in ("center", "squash", "border")
    for size in ((64, 64), (48, 72))
    for share in (1.0, 0.8)
]


@pytest.mark.parametrize(("mode", "size", "share"), MODES)
@pytest.mark.parametrize("shape", [(90, 60), (55, 121), (40, 40)])
def test_a_bright_square_stays_in_its_box_and_under_its_mask(mode, size, share, shape):
    transform = create_transform(
        input_size=(3, *size), is_training=False, crop_mode=mode, crop_pct=share, mean=(0,) * 3, std=HALF
    )
    geometry = of_steps(transform.transforms, (0,) * 3, HALF).geometry
    width, height = shape
    box = (width // 2 - 8, height // 2 - 6, width // 2 + 9, height // 2 + 7)
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[box[1] : box[3], box[0] : box[2]] = 255
    image = Image.fromarray(canvas)
    pixels, (moved,) = prepare_image(image, [box], **geometry)
    mask = prepare_image(image, [], **of_masks(geometry | {"fill": (124, 116, 104)}))[0].any(0)
    bright = pixels[0] > 127
    for found in (bright, mask):
        columns, rows = np.flatnonzero(found.any(0)), np.flatnonzero(found.any(1))
        edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        assert np.abs(np.subtract(edges, moved)).max() <= 1
    assert (bright != mask).sum() <= 2 * (bright.any(0).sum() + bright.any(1).sum())


def test_a_processor_of_one_channel_states_one_mean():
    processor = ViTImageProcessor(size={"height": 40, "width": 32}, image_mean=[0.5], image_std=[0.25])
    steps = of_processor(processor, channels=1)
    assert (steps.channels, steps.mean, steps.std, steps.fill) == (1, (0.5,), (0.25,), (0,))
    assert (steps.resize, steps.fit) == ((40, 32), "squash")
    with pytest.raises(UnreadableStepsError, match="states no mean of 3 channels"):
        of_processor(processor)
