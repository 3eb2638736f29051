"""Gradients of the target's logit on the activations, through the head alone."""

from __future__ import annotations

import torch
from torch import Tensor

from explainers.base import Batch
from explainers.models.classifier import Classifier
from explainers.probes.masked_forward import target_logit


# Autograd refuses tensors made in inference mode, so copies are taken outside of it.
@torch.inference_mode(False)
@torch.enable_grad()
def head_gradient(classifier: Classifier, batch: Batch, rows: slice) -> Tensor:
    """(b, \\*activation_shape) gradient of the targets' logits on the activations of some rows of a batch."""
    activations = leaf(batch, rows)
    (gradient,) = torch.autograd.grad(target_logits(classifier, batch, rows, activations), activations)
    return gradient


@torch.inference_mode(False)
@torch.enable_grad()
def head_gradient_and_curvature(classifier: Classifier, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
    """The gradient g as :func:`head_gradient`, and H A: its Hessian times the activations themselves.

    H A is zero where the head is linear or piecewise linear.
    """
    activations = leaf(batch, rows)
    # Fused attention has no second derivative.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        score = target_logits(classifier, batch, rows, activations)
        (gradient,) = torch.autograd.grad(score, activations, create_graph=True)
    curvature = None
    if gradient.requires_grad:
        along = activations.detach()
        (curvature,) = torch.autograd.grad(gradient, activations, along, allow_unused=True)
    if curvature is None:
        curvature = torch.zeros_like(gradient)
    return gradient.detach(), curvature


def leaf(batch: Batch, rows: slice) -> Tensor:
    """A copy of some rows' activations to take gradients on.

    Raises
    ------
    ValueError
        If the batch has no activations.
    """
    if batch.activations is None:
        raise ValueError("the batch has no activations")
    return batch.activations[rows].clone().requires_grad_()


def target_logits(classifier: Classifier, batch: Batch, rows: slice, activations: Tensor) -> Tensor:
    """Sum over rows of the targets' logits; rows do not touch each other, so neither do their gradients."""
    return target_logit(classifier.head(activations), batch.targets[rows].clone()).sum()
