"""Solving for a Newton step: matrix-free by conjugate gradients, or with a dense curvature by Cholesky."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, cg, eigsh
from torch import Tensor

from expunge.errors import ConvergenceError, CurvatureError

Product = Callable[[Tensor], Tensor]
"""Curvature times a direction, both (classes, width) float64."""

_LANCZOS = 300


@dataclass(frozen=True)
class Solution:
    """Where a linear system was left.

    Attributes:
        step: (classes, width).
        residual: (classes, width), curvature times step minus the right-hand side, computed afresh.
        products: Curvature products that it took.
    """

    step: Tensor
    residual: Tensor
    products: int


def conjugate_gradients(product: Product, right: Tensor, *, tolerance: float = 1e-10) -> Solution:
    """Solve curvature times step = right.

    Args:
        product: The curvature; must be symmetric and positive definite.
        right: (classes, width).
        tolerance: Norm of the residual to be reached, relative to that of `right`.

    Raises:
        CurvatureError: A direction was met along which the curvature is not positive.
        ConvergenceError: The tolerance was not reached.
    """
    products = 0

    def multiply(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal products
        products += 1
        direction = torch.from_numpy(np.ascontiguousarray(flat)).reshape(right.shape)
        image = product(direction)
        curvature = float((direction * image).sum())
        if curvature <= 0 and bool(direction.any()):
            raise _not_positive(curvature / float(direction.square().sum()))
        return image.flatten().numpy()

    size = right.numel()
    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    found, _ = cg(operator, right.flatten().numpy(), rtol=tolerance / 2, atol=0.0, maxiter=10 * size + 100)
    step = torch.from_numpy(np.asarray(found, dtype=np.float64)).reshape(right.shape)
    residual = product(step) - right
    if not float(residual.norm()) <= tolerance * float(right.norm()):
        raise ConvergenceError(
            f"conjugate gradients left a residual of {float(residual.norm()):.2g} after {products} products, where "
            f"{tolerance * float(right.norm()):.2g} was asked for; raise solver_tolerance or the L2 penalty"
        )
    return Solution(step, residual, products + 1)


def cholesky(curvature: Tensor, right: Tensor, *, rows: int = 1, penalty: float = 0.0) -> Solution:
    """Solve (curvature / rows + penalty I) step = right with a dense curvature, or with one block a class.

    Blocks are solved one by one, so that no more than one of the system is held beside the curvature.

    Args:
        curvature: (classes * width, classes * width), or (classes, width, width); it stays as it is.
        right: (classes, width).
        rows: Number of rows that the curvature is a sum over.
        penalty: What the objective adds to the diagonal.

    Raises:
        CurvatureError: The system is not positive definite.
    """
    blocks = curvature[None] if curvature.ndim == 2 else curvature
    columns = right.reshape(len(blocks), -1, 1)
    solved = [_solved(block, column, rows, penalty) for block, column in zip(blocks, columns, strict=True)]
    step, residual = (torch.stack(parts).reshape(right.shape) for parts in zip(*solved, strict=True))
    return Solution(step, residual, 1)


def _solved(block: Tensor, column: Tensor, rows: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Step and residual of one block, (width, 1) each."""
    system = block / rows
    system.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool(failed):
        raise _not_positive(float(torch.linalg.eigvalsh(system).min()))
    half = torch.linalg.solve_triangular(factor, column, upper=False)  # for one column quicker than cholesky_solve
    step = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return step, system @ step - column


def require_positive_definite(product: Product, like: Tensor) -> float:
    """The smallest eigenvalue of a matrix-free curvature, as Lanczos finds it: the true one is no larger.

    Args:
        product: The curvature.
        like: A tensor of the shape of its directions.

    Raises:
        CurvatureError: It is not above 0.
        ConvergenceError: Lanczos did not settle.
    """
    size = like.numel()

    def multiply(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        return product(torch.from_numpy(np.ascontiguousarray(flat)).reshape(like.shape)).flatten().numpy()

    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(size)
    try:
        found = eigsh(operator, k=1, which="SA", v0=start, tol=1e-3, maxiter=_LANCZOS, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    except ArpackNoConvergence as error:
        raise ConvergenceError(
            "the smallest curvature of the combined system was not found; use a larger surrogate, or a stored state"
        ) from error
    smallest = float(found[0])
    if smallest <= 0:
        raise _not_positive(smallest)
    return smallest


def _not_positive(curvature: float) -> CurvatureError:
    return CurvatureError(
        f"the curvature without the forget set is not positive definite (it has {curvature:.2g}); forget fewer "
        "examples at once, use a surrogate closer to the training set, or retrain"
    )
