"""A classifier of images, cut at a layer where one is needed: what explainers and metrics run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from explainers.models.architectures import prefix_tokens_of
from explainers.models.black_box import check_fill
from explainers.models.candidates import constant_tokens
from explainers.models.clip import Clip
from explainers.models.compute import eager, plainly
from explainers.models.cutting import Cut, Way, cut
from explainers.models.finding import TargetLayer, resolve_layer
from explainers.models.frozen import Frozen
from explainers.models.layout import Layout, Units, layout_of
from explainers.models.modality import MODALITIES, ModalityName
from explainers.models.model_spec import Activation, Output, Part, as_layers
from explainers.models.outputs import Outputs
from explainers.models.programs import check_can_be_cut
from explainers.models.token_places import layout_behind
from explainers.models.tokens import PatchTokens, find_tokens
from explainers.numerics.masking import gaussian_blur

__all__ = ["Classifier", "Units"]

_IMAGES = MODALITIES["image"]
_BLUR_SIGMA = 10.0  # pixels
# The stored value that is 1 for the network; floats are stored as the network sees them.
LARGEST_VALUES = {torch.uint8: 255, torch.uint16: 65535}


class Classifier(Frozen):
    """A network of images with its preprocessing, and its target layer: a :class:`BlackBox`.

    The network is cut at the layer when something first asks for the layer, the activations or their grid.
    Whatever asks for none of them works on a network that cannot be cut.

    While it is wrapped, the network is in eval mode, its parameters require no gradient and its in-place
    activations are switched off. :meth:`close`, or leaving the ``with`` block, restores all of that. The
    network stays on ``device``.

    Parameters
    ----------
    network
        Any module that takes (B, C, H, W) and returns logits (B, K), or a single logit per image.
    layer
        Name of the target module, as in ``network.named_modules()``. The module's output is explained, or its
        input where the name ends in ``:input``. If a module is called several times, the last call counts. An
        elementwise activation that is called as a function directly after the module, as in
        ``F.relu(self.conv3(x))``, belongs to it. By default it is found; see
        :mod:`explainers.models.finding`. Of several names, explainers give the mean of the layers' maps; see
        :attr:`at_each_layer`.
    input_size
        (H, W) in pixels.
    mean, std
        Per channel, for pixels in [0, 1]; the network sees (inputs - mean) / std. Inputs have as many
        channels as ``mean`` has numbers. By default ``std`` is 1.
    device
        The device that the network is moved to.
    output, activation
        What the network returns, and how logits become probabilities: see
        :class:`explainers.models.outputs.Outputs`.
    returns
        Which part of what the network returns is meant, by name or index, where it returns several: see
        :mod:`explainers.models.returned`.

    Raises
    ------
    ValueError
        In one line that names the key: the network does not run, or the named layer does not exist. Whatever
        needs the layer raises it as well: no layer can be found, the network cannot be cut at the layer, or
        the layer's output cannot be read.
    """

    modality: ClassVar[ModalityName] = "image"
    fills: ClassVar[tuple[str, ...]] = tuple(_IMAGES.fills)
    graded: ClassVar[bool] = _IMAGES.graded

    def __init__(
        self,
        network: nn.Module,
        *,
        layer: str | Sequence[str] | None = None,
        input_size: tuple[int, int],
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] | None = None,
        device: str | torch.device = "cpu",
        output: Output | None = None,
        returns: Part | None = None,
        activation: Activation | None = None,
    ) -> None:
        try:
            named = as_layers(layer)
        except ValueError as error:
            raise ValueError(f"layer: {error}") from error
        super().__init__(network, device, Outputs(output, activation), returns)
        self.input_size = input_size
        std = [1.0] * len(mean) if std is None else std
        if not mean or len(std) != len(mean):
            raise ValueError(f"std: give one number per channel, as mean does: {len(mean)}, not {len(std)}")
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
        self._asked_layer: str | None = None if isinstance(named, tuple) else named
        self._asked_layers: tuple[str, ...] = named if isinstance(named, tuple) else ()  # several
        try:
            probe = torch.rand(2, *self.input_shape, generator=torch.Generator().manual_seed(0))
            channels = "" if len(self.mean) == 3 else f"{len(self.mean)} channels and "
            size = f"inputs of {channels}{self.input_size[0]}x{self.input_size[1]} pixels"
            self.num_classes = self._probe(probe.to(self.device), "model.source", size).shape[1]
            if named is not None:  # a wrong name is refused now, though nothing may ever need the layer
                for each in self.at_each_layer:
                    each.layer  # noqa: B018
            self._switch_off_in_place()
        except BaseException:  # the caller gets its network back as it was, after an interrupt as well
            self.close()
            raise

    # The target layer, which is looked up when something needs it

    @property
    def layer(self) -> str:
        """Name of the target layer: the one that was named, or else the network's default.

        Raises
        ------
        ValueError
            In one line: none can be found, or several are named. Whatever needs the layer raises it then.
        """
        return self.target_layer.layer

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the target layers, in order; one, if no more are named."""
        return self._asked_layers or (self.layer,)

    @property
    def at_each_layer(self) -> tuple[Classifier, ...]:
        """This classifier at each of its target layers; itself, if it has one.

        They share the network and the way in which it is computed, and are closed with it.
        """
        if not self._asked_layers:
            return (self,)
        for each in self._copies:
            each.compute, each._compiled, each.class_names = self.compute, self._compiled, self.class_names
        return self._copies

    @cached_property
    def _copies(self) -> tuple[Classifier, ...]:
        return tuple(map(self._at, self._asked_layers))

    def _at(self, layer: str) -> Classifier:
        found = copy(self)
        found._asked_layer, found._asked_layers, found._restore = layer, (), []
        return found

    @cached_property
    def target_layer(self) -> TargetLayer:
        """The target layer, with what the search for it has seen."""
        if self._asked_layers:
            raise ValueError(
                f"model.layer: one layer is needed here, and {len(self._asked_layers)} are named: "
                f"{', '.join(self._asked_layers)}; name one of them"
            )
        check_can_be_cut(self.network)
        with plainly():
            return resolve_layer(self, self._asked_layer)

    @cached_property
    def _cut(self) -> Cut:
        if self.target_layer.parts is not None:
            return self.target_layer.parts
        with plainly():
            return cut(self.network, self.layer, self.normalised(self.probed))

    @property
    def layer_in_use(self) -> str | tuple[str, ...] | None:
        """The target layer, or all of several, if the network was cut there, otherwise None.

        Asking this cuts nothing.
        """
        if not any("_cut" in vars(each) for each in self.at_each_layer):
            return None
        return self._asked_layers or self.layer

    @property
    def way(self) -> Way:
        """The way in which the network is cut at the target layer."""
        return self._cut.way

    @cached_property
    def layout(self) -> Layout:
        """How activations at the target layer are read."""
        with plainly():
            activations = self._pass(self._cut.backbone, self.normalised(self.probed))
        try:
            return self.layout_for(tuple(activations.shape[1:]))
        except ValueError as error:
            raise ValueError(f"model.layer: cannot explain {self.layer!r}: {error}") from error

    @cached_property
    def _constant_tokens(self) -> dict[int, Tensor]:
        with plainly():
            return constant_tokens(self.network, lambda: self.logits(self.probed))

    def layout_for(self, shape: tuple[int, ...]) -> Layout:
        """How activations of a shape, without the batch axis, are read.

        The prefix tokens of a sequence are those of a known architecture, or else the tokens that are the
        same for all images before attention mixes them. If no token is, they are guessed; see
        :func:`explainers.models.layout.layout_of`.

        Raises
        ------
        ValueError
            They are on no grid, or tokens that are the same for all images are not before the patches.
        """
        prefix = prefix_tokens_of(self.network)
        same = self._constant_tokens.get(shape[0]) if len(shape) == 2 and prefix is None else None
        if same is None:
            return layout_of(shape, self.input_size, prefix)
        return replace(layout_behind(same, self.input_size), shape=shape)

    # What the activations look like

    @property
    def activation_shape(self) -> tuple[int, ...]:
        """Shape of the activations at the target layer, without the batch axis.

        Activations at several layers are in one row, layer by layer; :meth:`split` takes them apart.
        """
        if self._asked_layers:
            return (sum(math.prod(each.activation_shape) for each in self.at_each_layer),)
        return self.layout.shape

    def split(self, activations: Tensor) -> list[Tensor]:
        """The activations (B, \\*shape) at each target layer, from those of :meth:`activations`."""
        if not self._asked_layers:
            return [activations]
        shapes = [each.activation_shape for each in self.at_each_layer]
        parts = activations.split([math.prod(shape) for shape in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w): height and width of the channel maps, or of the grid of patch tokens."""
        return self.layout.grid

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patch tokens; 0 for maps."""
        return self.layout.prefix_tokens

    @property
    def units(self) -> Units:
        """The units that can be masked at the target layer: channels or patch tokens."""
        return self.layout.units

    @property
    def channels(self) -> int:
        """D in :meth:`spatial`: the number of channel maps, or the length of a token."""
        return self.layout.channels

    def mask_units(self, activations: Tensor, keep: Tensor) -> Tensor:
        """Set the units outside ``keep`` to zero; prefix tokens are always kept.

        Parameters
        ----------
        activations
            (B, \\*activation_shape).
        keep
            (B, U) bool, the units that keep their activations.

        Returns
        -------
        Tensor
            (B, \\*activation_shape).
        """
        return self.layout.mask(activations, keep)

    def mask_channels(self, activations: Tensor, keep: Tensor) -> Tensor:
        """Set the channels outside ``keep`` to zero; prefix tokens are always kept.

        Where the units are tokens, a channel is one of their D numbers, on all patches.

        Parameters
        ----------
        activations
            (B, \\*activation_shape).
        keep
            (B, D) bool, the channels that keep their activations.

        Returns
        -------
        Tensor
            (B, \\*activation_shape).
        """
        return self.layout.mask_channels(activations, keep)

    def spatial(self, activations: Tensor) -> Tensor:
        """Activations as channel maps (B, D, h, w); tokens are laid on the grid, without prefix tokens."""
        return self.layout.spatial(activations)

    def place(self, weights: Tensor, activations: Tensor) -> Tensor:
        """Make maps (B, h, w) from ``weights`` (B, U), one weight per unit.

        Where the units are channels, a map is the sum of the channel maps, each times its weight. Where they
        are tokens, the weights themselves are laid on the grid.
        """
        return self.layout.place(weights, activations)

    # The inputs, and what is shown in place of absent pixels

    @property
    def input_shape(self) -> tuple[int, ...]:
        return len(self.mean), *self.input_size

    def inputs_of(self, stored: Tensor) -> Tensor:
        largest = LARGEST_VALUES.get(stored.dtype)
        if largest is None:
            return stored.float()
        # By a tensor, because a GPU divides by a number less exactly than the CPU does.
        return stored.float() / torch.full((), float(largest), device=stored.device)

    def sites(self, inputs: Tensor) -> Tensor:
        return _IMAGES.sites(inputs)

    def fill(self, inputs: Tensor, how: str) -> Tensor:
        check_fill(self, how)
        if how == "blur":
            return gaussian_blur(inputs, _BLUR_SIGMA)
        # A colour is (1, C, 1, 1). The mean is the one that is subtracted, so it is zero after normalisation.
        mean = self.mean[None]
        return mean if how == "mean" else torch.full_like(mean, float(how == "white"))

    # Passes through the network; callers choose inference_mode

    def logits(self, inputs: Tensor) -> Tensor:
        return self._as_logits(self._pass(self.network, self.normalised(inputs)))

    def activations(self, inputs: Tensor) -> Tensor:
        """Run the backbone: from inputs to the activations at the target layer; differentiable.

        Parameters
        ----------
        inputs
            (B, C, H, W), pixels in [0, 1].

        Returns
        -------
        Tensor
            (B, \\*activation_shape).
        """
        if self._asked_layers:
            return torch.cat([each.activations(inputs).flatten(1) for each in self.at_each_layer], 1)
        return self._pass(self._cut.backbone, self.normalised(inputs))

    def head(self, activations: Tensor) -> Tensor:
        """Run the rest of the network: from activations to logits; differentiable.

        Of activations at several layers, the last layer's are used.

        Parameters
        ----------
        activations
            (B, \\*activation_shape), masked ones as well.

        Returns
        -------
        Tensor
            (B, C) logits. From unchanged activations they are those of :meth:`logits`.
        """
        if self._asked_layers:
            return self.at_each_layer[-1].head(self.split(activations)[-1])
        return self._as_logits(self._pass(self._cut.head, activations))

    def normalised(self, inputs: Tensor) -> Tensor:
        """What the network sees of (B, C, H, W) inputs in [0, 1]: (inputs - mean) / std."""
        return (inputs - self.mean) / self.std

    @property
    def logit_scale(self) -> float:
        """The factor from cosine similarities to logits of a CLIP-like model; 1 for other networks."""
        return self.network.logit_scale if isinstance(self.network, Clip) else 1.0

    @cached_property
    def _tokens(self) -> PatchTokens | str:
        try:
            with plainly():
                return find_tokens(self.network, self.normalised(self.probed))
        except ValueError as error:
            return str(error)

    @property
    def lacks_patches(self) -> str | None:
        """Why the network cannot be run on a subset of patches; None if it can. It is tried once."""
        return self._tokens if isinstance(self._tokens, str) else None

    @property
    def supports_patches(self) -> bool:
        """Whether the network is a transformer that can be run on a subset of its patch tokens."""
        return self.lacks_patches is None

    @property
    def patches(self) -> PatchTokens:
        """Where the tokens of the patches are, and how they are left out.

        Raises
        ------
        ValueError
            In one line, if the network cannot be run on a subset of patches.
        """
        if isinstance(self._tokens, str):
            name = type(self.network).__qualname__
            raise ValueError(f"{name} cannot be run on a subset of patches: {self._tokens}")
        return self._tokens

    def embed(self, inputs: Tensor) -> Tensor:
        """Make the tokens that the first block sees, with their positions added.

        Parameters
        ----------
        inputs
            (B, C, H, W), pixels in [0, 1].

        Returns
        -------
        Tensor
            (B, prefix + N, D): the prefix tokens, then the tokens of N patches in row-major order.
        """
        with eager():  # embedding is so short that compiling it costs more than it saves
            return self._pass(self.patches.cut.backbone, self.normalised(inputs))

    def encode(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Compute logits from tokens of :meth:`embed` when some of the patches are present; differentiable.

        Parameters
        ----------
        tokens
            (B, prefix + N, D).
        keep
            (B, N) bool, the patches that are present, equally many in each row; None for the tokens as they
            are.

        Returns
        -------
        Tensor
            (B, C) logits.
        """

        def head(given: Tensor) -> Tensor:
            return self._as_logits(self._pass(self.patches.cut.head, given))

        return head(tokens) if keep is None else self.patches.run(head, tokens, keep)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(h, w): rows and columns of the patches in :meth:`embed`."""
        return self.patches.layout.grid

    @property
    def needs_patches(self) -> bool:
        """Whether there are no logits when every patch is left out; so it is without tokens of patches."""
        return not self.supports_patches or self.patches.needs_patches

    def logits_of_patches(self, inputs: Tensor, keep: Tensor) -> Tensor:
        """Compute logits when the transformer sees only some of the patches.

        All patches are embedded and get their positions. Then the absent ones are left out, as
        :attr:`patches` says, so that the logits are those of the prefix tokens and the present patches alone.

        Parameters
        ----------
        inputs
            (B, C, H, W), pixels in [0, 1].
        keep
            (B, N) bool, the patches that are present. Rows may keep different numbers of patches.

        Returns
        -------
        Tensor
            (B, C) logits.

        Raises
        ------
        ValueError
            If the network is not such a transformer, if ``keep`` does not fit its patches, or if a row keeps
            no patch and the head reads patches alone.
        """
        patches = self.patches.layout.units.count
        if keep.shape[1] != patches:
            raise ValueError(f"keep has {keep.shape[1]} columns for {patches} patches")
        tokens = self.embed(inputs)
        counts = keep.sum(1)
        if self.needs_patches and bool((counts == 0).any()):
            raise ValueError("a network that pools its patches has no logits without any patch")
        logits = inputs.new_empty(len(inputs), self.num_classes)
        # Rows that keep equally many patches have token sequences of one length, and share a pass.
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero().squeeze(1)
            logits = logits.index_copy(0, rows, self.encode(tokens[rows], keep[rows]))
        return logits
