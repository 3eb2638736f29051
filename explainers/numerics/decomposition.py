"""Singular value decompositions of a batch in which some matrices may not be finite."""

from __future__ import annotations

import torch
from torch import Tensor


def svd(matrices: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values of a batch of matrices.

    A matrix that is not finite gets factors of NaN instead of an error for the whole batch. Singular values
    beyond a matrix's numerical rank are set to zero, so that rounding is not taken for structure.

    Parameters
    ----------
    matrices
        (B, n, m).
    size
        (B,), the magnitude of the numbers that the matrices were computed from, which sets the size of their
        rounding errors. By default each matrix's own first singular value.

    Returns
    -------
    U, S
        (B, n, r) and (B, r) with r = min(n, m).
    """
    finite = matrices.isfinite().all(-1).all(-1)
    U, S, _ = torch.linalg.svd(matrices.masked_fill(~finite[:, None, None], 0), full_matrices=False)
    size = S[:, 0] if size is None else size
    rounding = max(matrices.shape[1:]) * torch.finfo(S.dtype).eps * size[:, None]
    S = S.masked_fill(rounding >= S, 0)
    # Adding 0 leaves the factors of finite matrices as they are, and adding NaN marks the others.
    missing = torch.where(finite, 0.0, torch.nan).to(S)
    return U + missing[:, None, None], S + missing[:, None]
