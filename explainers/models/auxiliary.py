"""P-TAME's auxiliary network: a frozen classifier of images that gives its inner feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from explainers.models.architectures import by_class
from explainers.models.cutting.recording import StoppedError
from explainers.models.frozen import Frozen
from plugins.reasons import first_line

# The taps of P-TAME's release, by the class of the network.
TAPS = {
    "torchvision.models.resnet.ResNet": ("layer1", "layer2", "layer3", "layer4"),
    "timm.models.resnet.ResNet": ("layer1", "layer2", "layer3", "layer4"),
    "torchvision.models.mobilenetv3.MobileNetV3": tuple(f"features.{i}" for i in range(9, 13)),
    "torchvision.models.mnasnet.MNASNet": tuple(f"layers.{i}" for i in range(13, 17)),
}


class Auxiliary(Frozen):
    """A network g and its taps: the modules whose outputs, maps (B, C, h, w), are its features.

    It is in eval mode and its parameters require no gradient, as in every
    :class:`explainers.models.frozen.Frozen`. In-place activations are switched off as well, because an
    in-place activation after a tap would overwrite the tap's output. In MNASNet, ``layers.16`` would turn the
    output of ``layers.15`` into its own.

    Parameters
    ----------
    network
        Any module that takes normalised pixels (B, 3, H, W).
    taps
        Names of modules, as in ``network.named_modules()``. There are defaults for ResNets, MobileNetV3 and
        MNASNet.
    device
        The device that the network is moved to.

    Raises
    ------
    ValueError
        In one line: no taps are known for this network, or it has no module of that name.
    """

    def __init__(
        self, network: nn.Module, taps: Sequence[str] | None = None, device: str | torch.device = "cpu"
    ) -> None:
        known = by_class(TAPS, network)
        if not (taps or known):
            raise ValueError(
                f"auxiliary.taps: none are known for {type(network).__name__}; name the modules to read"
            )
        self.taps = tuple(taps or known or ())
        modules = dict(network.named_modules())
        for name in self.taps:
            if name not in modules:
                raise ValueError(f"auxiliary.taps: {type(network).__name__} has no module {name!r}")
        super().__init__(network, device)
        self._switch_off_in_place()
        self._modules = [modules[name] for name in self.taps]

    def features(self, normalised: Tensor) -> list[Tensor]:
        """Run the network up to its last tap, and give the output of each tap.

        Parameters
        ----------
        normalised
            (B, 3, H, W), pixels after the network's own normalisation.

        Returns
        -------
        list
            One tensor (B, C, h, w) per tap, in the order of :attr:`taps`.

        Raises
        ------
        ValueError
            In one line, if a tap is not run, or its output is no tensor.
        """
        return self._checked(self._outputs(normalised))

    def _checked(self, found: dict[int, Tensor]) -> list[Tensor]:
        for place, name in enumerate(self.taps):
            if place not in found:
                kind = type(self.network).__name__
                raise ValueError(f"auxiliary.taps: {kind} does not run {name}; name modules that it runs")
            if not isinstance(found[place], Tensor):
                kind = type(found[place]).__name__
                raise ValueError(f"auxiliary.taps: {name} gives a {kind}, not maps; name a convolution")
        return [found[place] for place in range(len(self.taps))]

    def _outputs(self, normalised: Tensor) -> dict[int, Tensor]:
        """The output of each tap that was run, by its place in :attr:`taps`."""
        found: dict[int, Tensor] = {}

        def keep(place: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                found[place] = output
                if len(found) == len(self.taps):
                    raise StoppedError  # the last tap has been read

            return hook

        hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(self._modules)]
        try:
            with suppress(StoppedError):
                self.network(normalised)
        finally:
            for handle in hooks:
                handle.remove()
        return found

    @torch.no_grad()
    def shapes(self, size: tuple[int, int], channels: int = 3) -> list[tuple[int, int, int]]:
        """The shapes of the features for inputs of one size.

        Parameters
        ----------
        size
            (H, W) of the inputs, in pixels.
        channels
            Their number of channels.

        Returns
        -------
        list
            (C, h, w) for each tap; no later map is larger than the first tap's.

        Raises
        ------
        ValueError
            In one line, if the network does not take such inputs, if an output is no map, or if a later map
            is larger than the first tap's.
        """
        inputs = torch.zeros(2, channels, *size, device=self.device)
        try:
            found = self._outputs(inputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a network may refuse inputs with an exception of any kind
            kind, told = type(self.network).__name__, "" if channels == 3 else f"{channels} channels of "
            raise ValueError(
                f"auxiliary: {kind} does not take {told}{size[0]}x{size[1]} pixels ({first_line(error)}); "
                "choose another network, or a model.crop that it takes"
            ) from error
        shapes = [tuple(features.shape[1:]) for features in self._checked(found)]
        for name, shape in zip(self.taps, shapes, strict=True):
            if len(shape) != 3:
                raise ValueError(
                    f"auxiliary.taps: {name} gives {shape}, not maps (C, h, w); name a convolution"
                )
            if shape[1] > shapes[0][1] or shape[2] > shapes[0][2]:
                raise ValueError(f"auxiliary.taps: the maps of {name} are larger than the first tap's")
        return [(channels, height, width) for channels, height, width in shapes]
