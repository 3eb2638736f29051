"""Small configurations of the Hugging Face families of image classifiers, by model type."""

from __future__ import annotations

from typing import Any

CLASSES = 12
_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 8,
}
_CLIP = {"vision_config": _VIT | {"projection_dim": 32}, "projection_dim": 32}
_SWIN = {
    "image_size": 224,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [1, 1, 2, 1],
    "num_heads": [2, 2, 4, 4],
}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
_CONVNEXT = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "image_size": 224}
_DINO = _VIT | {"mlp_ratio": 2}
_DEIT = _VIT | {"encoder_stride": 8}
_PERCEIVER = {
    "num_latents": 16,
    "d_latents": 48,
    "num_blocks": 1,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "image_size": 56,
}
_LEVIT = {
    "image_size": 224,
    "hidden_sizes": [32, 48, 64],
    "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}

# By a name for the row: the model type, the class of the network where the type has several, the side of the
# inputs in pixels, and the values of the configuration that differ from its defaults.
FAMILIES: dict[str, tuple[str, str | None, int, dict[str, Any]]] = {
    "beit": ("beit", None, 64, _VIT),
    "bit": ("bit", None, 224, _RESNET | {"num_groups": 8}),
    "clip": ("clip", None, 64, _CLIP),
    "convnext": ("convnext", None, 224, _CONVNEXT),
    "convnextv2": ("convnextv2", None, 224, _CONVNEXT),
    "cvt": ("cvt", None, 224, {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}),
    "data2vec-vision": ("data2vec-vision", None, 64, _VIT),
    "deit": ("deit", "DeiTForImageClassification", 64, _DEIT),
    "deit with teacher": ("deit", "DeiTForImageClassificationWithTeacher", 64, _DEIT),
    "dinov2": ("dinov2", None, 64, _DINO),
    "dinov2_with_registers": ("dinov2_with_registers", None, 64, _DINO | {"num_register_tokens": 4}),
    "donut-swin": ("donut-swin", None, 224, _SWIN | {"window_size": 4}),
    "efficientnet": (
        "efficientnet",
        None,
        224,
        {"image_size": 224, "width_coefficient": 0.3, "depth_coefficient": 0.5, "hidden_dim": 384},
    ),
    "focalnet": (
        "focalnet",
        None,
        224,
        {"image_size": 224, "embed_dim": 24, "depths": [1, 1, 2, 1], "hidden_sizes": [24, 48, 96, 192]},
    ),
    "hgnet_v2": ("hgnet_v2", None, 224, {}),
    "hiera": (
        "hiera",
        None,
        224,
        {"image_size": [224, 224], "embed_dim": 24, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "ijepa": ("ijepa", None, 64, _VIT),
    "imagegpt": ("imagegpt", None, 16, {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "levit": ("levit", "LevitForImageClassification", 224, _LEVIT),
    "levit with teacher": ("levit", "LevitForImageClassificationWithTeacher", 224, _LEVIT),
    "metaclip_2": ("metaclip_2", None, 64, _CLIP),
    "mobilenet_v1": ("mobilenet_v1", None, 224, {"depth_multiplier": 0.25}),
    "mobilenet_v2": ("mobilenet_v2", None, 224, {"depth_multiplier": 0.35}),
    "mobilevit": (
        "mobilevit",
        None,
        224,
        {
            "image_size": 224,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
        },
    ),
    "mobilevitv2": ("mobilevitv2", None, 224, {"image_size": 224, "width_multiplier": 0.5}),
    "perceiver, learned positions": (
        "perceiver",
        "PerceiverForImageClassificationLearned",
        56,
        _PERCEIVER,
    ),
    "perceiver, Fourier positions": (
        "perceiver",
        "PerceiverForImageClassificationFourier",
        224,
        _PERCEIVER | {"image_size": 224},
    ),
    "perceiver, convolutions": (
        "perceiver",
        "PerceiverForImageClassificationConvProcessing",
        224,
        _PERCEIVER | {"image_size": 224},
    ),
    "poolformer": ("poolformer", None, 224, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "pp_lcnet": ("pp_lcnet", None, 224, {"scale": 0.25}),
    "pvt": ("pvt", None, 224, {"image_size": 224, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}),
    "pvt_v2": (
        "pvt_v2",
        None,
        224,
        {"image_size": 224, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]},
    ),
    "regnet": ("regnet", None, 224, _RESNET | {"groups_width": 16}),
    "resnet": ("resnet", None, 224, _RESNET),
    "segformer": (
        "segformer",
        None,
        224,
        {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]},
    ),
    "siglip": ("siglip", None, 64, _CLIP),
    "siglip2": ("siglip2", None, 64, {"vision_config": _VIT | {"num_patches": 64}}),
    "swiftformer": (
        "swiftformer",
        None,
        224,
        {"image_size": 224, "embed_dims": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
    ),
    "swin": ("swin", None, 224, _SWIN | {"window_size": 4}),
    "swinv2": ("swinv2", None, 224, _SWIN | {"window_size": 4}),
    "textnet": ("textnet", None, 224, {"image_size": [224, 224]}),
    "timm_wrapper": ("timm_wrapper", None, 224, {"architecture": "resnet18"}),
    "vit": ("vit", None, 64, _VIT),
    "vit_msn": ("vit_msn", None, 64, _VIT),
}
