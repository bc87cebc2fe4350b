"""The attention matrix of a head as an operator: its top singular triplets and the quadrature over its others.

A = softmax(q k^T scale), N x N, is never formed. The two products are calls of `attend`:

    A X   = attend(q, k, X)
    A^T Y = exp(lse') out',   out', lse' = attend(k, q, Y, log_mass=-lse)

* Top singular values: block Krylov space of A A^T (Musco and Musco 2015), fully reorthogonalised, Rayleigh-Ritz.
* Stochastic Lanczos quadrature on the complement of the leading Ritz vectors: Golub-Kahan bidiagonalisation with full
  reorthogonalisation on both sides, which gives a Gauss rule and a Gauss-Radau rule with a node at zero.

The price is counted in attention forwards of a head, 4 N^2 D operations: a product with b columns is
(2 D + 2 b) N^2 operations, so that blocks of D columns make the most of one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from accel.attend import attend


class AttentionOperator:
    """The matrices A of some heads as an operator on blocks (H, N, c); `apply` is A X, `adjoint` is A^T Y.

    q, k: (H, N, D). Blocks are cut into chunks of `width` columns, to which q and k are padded with zeros, since fused
    kernels want one head dimension and the exponentials are the dearer part. `adjoint` needs the normalisers of the
    rows, which the first `apply` leaves behind. `forwards` counts the products so far.
    """

    def __init__(self, q: Tensor, k: Tensor, scale: float, width: int):
        self.dim = q.shape[-1]
        extra = max(width - self.dim, 0)
        self.q, self.k = (pad(x, (0, extra))[None] for x in (q, k))
        self.scale, self.width = scale, self.dim + extra
        self.lse: Tensor | None = None
        self.products = 0

    @property
    def forwards(self) -> float:
        """What the products so far have cost, in attention forwards of these heads (the padding counts)."""
        return self.products * self.width / self.dim

    def _chunks(self, block: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        columns = block.shape[-1]
        parts = pad(block, (0, -columns % self.width)).split(self.width, dim=-1)
        self.products += len(parts)
        return torch.cat([product(part.contiguous()[None])[0] for part in parts], dim=-1)[..., :columns]

    def apply(self, block: Tensor) -> Tensor:
        def product(x: Tensor) -> Tensor:
            out, self.lse = attend(self.q, self.k, x, scale=self.scale)
            return out

        return self._chunks(block, product)

    def adjoint(self, block: Tensor) -> Tensor:
        if self.lse is None:
            self.apply(block[..., :1])

        def product(y: Tensor) -> Tensor:
            out, lse = attend(self.k, self.q, y, log_mass=-self.lse, scale=self.scale)
            return out * lse.exp()[..., None]

        return self._chunks(block, product)


class Triplets(NamedTuple):
    """The leading Ritz values (H, r), descending, float64; right vectors (H, N, r); residual and increment (H, r).

    residual |A v - s u|: an exact singular value is as near to s as this; the error is of second order in it.
    increment: by how much the last step raised s. Ritz values rise to the singular values, and where each step takes
    away at least half of the error, the rest is no more than this.
    """

    s: Tensor
    right: Tensor
    residual: Tensor
    increment: Tensor


def top_singular_triplets(operator: AttentionOperator, start: Tensor, iterations: int) -> Triplets:
    """Rayleigh-Ritz in span{A S, (A A^T) A S, ...}, `iterations` powers, from `start` (H, N, r).

    2 iterations + 3 products with r columns. Memory: 2 r (iterations + 1) columns of N, and their QR.
    """
    tokens, width = start.shape[-2:]
    basis = torch.linalg.qr(operator.apply(start)).Q
    image = last = operator.adjoint(basis)
    before = 0
    for _ in range(iterations):
        columns = min(width, tokens - basis.shape[-1])
        if columns <= 0:
            break
        before = basis.shape[-1]
        fresh = orthonormal(operator.apply(last[..., :columns]), basis)
        last = operator.adjoint(fresh)
        basis, image = torch.cat([basis, fresh], -1), torch.cat([image, last], -1)
    outer, small = torch.linalg.qr(image)  # A^T basis = outer small
    small = small.double()
    left, s, right = torch.linalg.svd(small.mT, full_matrices=False)
    keep = min(width, s.shape[-1])
    v = outer @ right.mT[..., :keep].to(outer.dtype)
    u = basis @ left[..., :keep].to(basis.dtype)
    residual = torch.linalg.vector_norm(operator.apply(v) - u * s[..., None, :keep].to(u.dtype), dim=-2)
    earlier = torch.linalg.svdvals(small[..., :before])[..., :keep]
    increment = s[..., :keep] - pad(earlier, (0, keep - earlier.shape[-1]))
    if basis.shape[-1] == tokens:  # the space is everything
        increment = torch.zeros_like(increment)
    return Triplets(s[..., :keep], v, residual, increment)


def orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of the block's columns made orthogonal to `basis`; also where they depend on each other."""
    for _ in range(3):
        block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
    return block


def quadrature(operator: AttentionOperator, deflated: Tensor, probes: Tensor, steps: int) -> tuple[np.ndarray, ...]:
    """Nodes (singular values) and weights of Gauss and Gauss-Radau rules, each (H, probes, steps), float64.

    Golub-Kahan: A v_j = beta_{j-1} u_{j-1} + alpha_j u_j and A^T u_j = alpha_j v_j + beta_j v_{j+1}, one recurrence
    per column, on the complement of `deflated`. B = bidiag(alpha, beta) gives Gauss; B with the extra column
    beta_m e_m gives Gauss-Radau with a node at zero (Golub and Meurant 2010).
    """

    def free(block: Tensor) -> Tensor:
        return block - deflated @ (deflated.mT @ block)

    def against(block: Tensor, earlier: list[Tensor]) -> Tensor:
        for _ in range(2):
            if earlier:
                stack = torch.stack(earlier)
                block = block - (stack * (stack * block).sum(-2, keepdim=True)).sum(0)
        return block

    def unit(block: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(block, dim=-2, keepdim=True)
        floor = 0 if reference is None else 8 * torch.finfo(block.dtype).eps * reference
        norm = torch.where(norm > floor, norm, 0)
        return torch.where(norm > 0, block / norm.clamp_min(torch.finfo(block.dtype).tiny), 0), norm

    v, _ = unit(free(free(probes)), None)
    vs, us, alphas, betas = [v], [], [], []
    first = None
    for _ in range(steps):
        u, alpha = unit(against(operator.apply(vs[-1]), us), first)
        first = alpha if first is None else first
        us.append(u)
        v, beta = unit(against(free(operator.adjoint(u)), vs), first)
        vs.append(v)
        alphas.append(alpha[..., 0, :].double())
        betas.append(beta[..., 0, :].double())
    alpha, beta = torch.stack(alphas, -1), torch.stack(betas, -1)
    radau = torch.zeros(*alpha.shape, steps + 1, dtype=torch.float64, device=alpha.device)
    radau.diagonal(dim1=-2, dim2=-1).copy_(alpha)
    radau.diagonal(1, dim1=-2, dim2=-1).copy_(beta)
    rules = []
    for matrix in (radau[..., :steps], radau):
        _, nodes, right = torch.linalg.svd(matrix, full_matrices=False)
        rules += [nodes.cpu().numpy(), right[..., 0].square().cpu().numpy()]
    return tuple(rules)
