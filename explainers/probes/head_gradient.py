"""Gradients of the target's logit with respect to the activations, through the head alone."""

from __future__ import annotations

import torch
from torch import Tensor

from explainers.base import Batch
from explainers.models.classifier import Classifier
from explainers.probes.masked_forward import of_target


# Autograd refuses tensors that were made in inference mode, so copies are made outside of it.
@torch.inference_mode(False)
@torch.enable_grad()
def head_gradient(classifier: Classifier, batch: Batch, rows: slice) -> Tensor:
    """Gradient of the targets' logits with respect to the activations, for b rows of a batch.

    Returns
    -------
    Tensor
        (b, \\*activation_shape).

    Raises
    ------
    ValueError
        If the batch has no activations.
    """
    activations = leaf(batch, rows)
    (gradient,) = torch.autograd.grad(target_logits(classifier, batch, rows, activations), activations)
    return gradient


@torch.inference_mode(False)
@torch.enable_grad()
def head_gradient_and_curvature(classifier: Classifier, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
    """Gradient g as in :func:`head_gradient`, and H A: the Hessian times the activations A themselves.

    H A is zero where the head is linear or piecewise linear.

    Returns
    -------
    gradient, curvature
        (b, \\*activation_shape) each.

    Raises
    ------
    ValueError
        If the batch has no activations.
    RuntimeError
        If an operation of the head has no second derivative.
    """
    activations = leaf(batch, rows)
    # Fused attention has no second derivative; the plain one has.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        score = target_logits(classifier, batch, rows, activations)
        (gradient,) = torch.autograd.grad(score, activations, create_graph=True)
    curvature = None
    if gradient.requires_grad:  # otherwise the head is linear, and the Hessian is zero
        along = activations.detach()
        (curvature,) = torch.autograd.grad(gradient, activations, along, allow_unused=True)
    if curvature is None:
        curvature = torch.zeros_like(gradient)
    return gradient.detach(), curvature


def leaf(batch: Batch, rows: slice) -> Tensor:
    """A copy (b, \\*activation_shape) of some rows' activations that requires a gradient.

    Raises
    ------
    ValueError
        If the batch has no activations.
    """
    if batch.activations is None:
        raise ValueError("the batch has no activations")
    return batch.activations[rows].clone().requires_grad_()


def target_logits(classifier: Classifier, batch: Batch, rows: slice, activations: Tensor) -> Tensor:
    """The sum over rows of the targets' logits, a scalar.

    Rows do not influence each other, so the gradient of the sum holds the gradient of every row by itself.
    """
    return of_target(classifier.head(activations), batch.targets[rows].clone()).sum()
