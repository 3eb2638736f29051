"""Singular value decompositions of a batch in which some matrices may not be finite."""

from __future__ import annotations

import torch
from torch import Tensor


def svd(matrices: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """U (B, n, r) and S (B, r) of (B, n, m) matrices, r = min(n, m).

    A matrix that is not finite gets factors of NaN instead of an error for the whole batch. What lies beyond
    a matrix's numerical rank has the singular value zero, so that rounding cannot pass for structure.
    ``size`` (B,) says how large the numbers were that the matrices were made of, if not as large as the
    matrices' own first singular values.
    """
    finite = matrices.isfinite().all(-1).all(-1)
    U, S, _ = torch.linalg.svd(matrices.masked_fill(~finite[:, None, None], 0), full_matrices=False)
    size = S[:, 0] if size is None else size
    rounding = max(matrices.shape[1:]) * torch.finfo(S.dtype).eps * size[:, None]
    S = S.masked_fill(rounding >= S, 0)
    missing = torch.where(finite, 0.0, torch.nan).to(S)
    return U + missing[:, None, None], S + missing[:, None]
