"""Every supported family of networks, small and randomly initialised, with what is known of each."""

import timm
import torch
from torch import nn
from torchvision import models

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)


def published(name):
    return lambda: models.get_model(name, weights=None, num_classes=7)


def _resnext():
    return models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=7, groups=4, width_per_group=8)


def _vgg():
    layers = models.vgg.make_layers([8, "M", 16, "M", 16, "M", 32, "M", 512, "M"], batch_norm=True)
    network = models.VGG(layers, init_weights=False)
    network.classifier = nn.Sequential(
        nn.Flatten(), nn.Linear(512 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 7)
    )
    return network


def _efficientnet():
    stages = [models.efficientnet.MBConvConfig(4, 3, 2, 8 * i, 8 * i + 8, 1) for i in range(1, 5)]
    return models.EfficientNet(stages, dropout=0.2, num_classes=7)


def _densenet():
    return models.DenseNet(growth_rate=8, block_config=(2, 2, 2, 2), num_init_features=16, num_classes=7)


def _convnext():
    stages = [models.convnext.CNBlockConfig(16 * 2**i, 32 * 2**i if i < 3 else None, 1) for i in range(4)]
    return models.ConvNeXt(stages, layer_scale=0.5, num_classes=7)


def _swin(**kwargs):
    sizes = {"patch_size": [4, 4], "embed_dim": 24, "depths": [1, 1, 2, 1], "window_size": [4, 4]}
    return models.SwinTransformer(**sizes, num_heads=[1, 2, 4, 8], num_classes=7, **kwargs)


def _swin_v2():
    swin = models.swin_transformer
    return _swin(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)


def small_vit():
    return models.VisionTransformer(
        64, 16, num_layers=3, num_heads=2, hidden_dim=32, mlp_dim=48, num_classes=7
    )


def _timm_vit(name, **kwargs):
    small = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
    return lambda: timm.create_model(name, **small, **kwargs)


_TINY = "vit_tiny_patch16_224"
# family: (network, default layer, activation shape, prefix tokens) on 64x64 inputs
FAMILIES = {
    "resnet": (published("resnet18"), "layer4", (512, 2, 2), 0),
    "resnext": (_resnext, "layer4", (2048, 2, 2), 0),
    "vgg": (_vgg, "features", (512, 2, 2), 0),
    "mobilenet_v2": (published("mobilenet_v2"), "features", (1280, 2, 2), 0),
    "mobilenet_v3": (published("mobilenet_v3_small"), "features", (576, 2, 2), 0),
    "efficientnet": (_efficientnet, "features", (160, 2, 2), 0),
    "densenet": (_densenet, "features", (32, 2, 2), 0),
    "convnext": (_convnext, "features", (128, 2, 2), 0),
    "swin": (_swin, "norm", (2, 2, 192), 0),
    "swin_v2": (_swin_v2, "norm", (2, 2, 192), 0),
    "vit": (small_vit, "encoder.layers.encoder_layer_2:input", (17, 32), 1),
    "timm_vit": (_timm_vit(_TINY), "blocks.2:input", (17, 48), 1),
    "timm_vit_registers": (
        _timm_vit(_TINY, reg_tokens=2, no_embed_class=True),
        "blocks.2:input",
        (19, 48),
        3,
    ),
    "timm_vit_mean": (_timm_vit(_TINY, global_pool="avg", class_token=False), "blocks.2", (16, 48), 0),
    "timm_vit_mean_class_token": (_timm_vit(_TINY, global_pool="avg"), "blocks.2", (17, 48), 1),
    "timm_deit": (_timm_vit("deit_tiny_patch16_224"), "blocks.2:input", (17, 48), 1),
    "timm_deit_distilled": (_timm_vit("deit_tiny_distilled_patch16_224"), "blocks.2:input", (18, 48), 2),
    "timm_resnet": (lambda: timm.create_model("resnet18", num_classes=7), "layer4", (512, 2, 2), 0),
}
# The published sizes of the families that stand above as miniatures.
PUBLISHED = {
    "resnext50_32x4d": ("layer4", 2048),
    "vgg11": ("features", 512),
    "efficientnet_b0": ("features", 1280),
    "densenet121": ("features", 1024),
    "convnext_tiny": ("features", 768),
    "swin_t": ("norm", 4),
    "swin_v2_t": ("norm", 4),
}


def randomised(network: nn.Module) -> nn.Module:
    """No constant parameters (torchvision's ViT head starts at zero), and batch statistics of noise."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.amin() == parameter.amax():
            parameter.data += 0.1 * torch.randn_like(parameter)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = 1.0
    if norms:
        with torch.no_grad():
            network.train()(normalised(pixels(8)))
    return network


def stirred(build, spread=1.5):
    """A seeded network in which every parameter counts, whatever its initial value is."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build().eval().requires_grad_(False)
        for parameter in network.parameters():
            size = 0.3 if parameter.ndim == 1 else spread * parameter[0].numel() ** -0.5
            parameter.add_(size * torch.randn_like(parameter))
    return network


def pixels(count=3, size=(64, 64), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def normalised(inputs):
    return torch.stack([(inputs[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)


def condition(network):
    """Everything a classifier might change in a network and forget to restore."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = {
        name: (
            module.training,
            getattr(module, "inplace", None),
            type(module),
            *(len(getattr(module, h)) for h in hooks),
        )
        for name, module in network.named_modules()
    }
    return modules, {name: parameter.requires_grad for name, parameter in network.named_parameters()}
