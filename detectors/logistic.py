"""Weighted logistic regression with a ridge, by Newton's method. Nothing is random: same rows, same weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def logistic(
    features: Doubles, targets: Doubles, mass: Doubles, *, ridge: float, start: Doubles | None = None
) -> Doubles:
    """Weights and, last, the intercept: float64 (d + 1,); minimises sum(mass * loss) + ridge / 2 |weights|^2.

    Args:
        features: float64 (n, d).
        targets: float64 (n,) in [0, 1].
        mass: float64 (n,), adding up to 1.
        ridge: > 0; the intercept is free of it.
        start: float64 (d + 1,), weights to begin with; zeros by default.
    """
    design = np.column_stack([features, np.ones(len(features))])
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 1e-9  # keeps the equations solvable, without pulling the intercept

    def loss(weights: Doubles) -> float:
        odds = design @ weights
        return float(mass @ (np.logaddexp(0.0, odds) - targets * odds) + 0.5 * penalty @ weights**2)

    weights = np.zeros(design.shape[1]) if start is None else start
    before = loss(weights)
    for _ in range(50):
        probability = sigmoid(design @ weights)
        gradient = design.T @ (mass * (probability - targets)) + penalty * weights
        curvature = mass * probability * (1.0 - probability)
        halves = design * np.sqrt(curvature)[:, None]  # an array's product with itself takes BLAS half the time
        step = np.linalg.solve(halves.T @ halves + np.diag(penalty), gradient)
        length = 1.0
        while (after := loss(weights - length * step)) > before and length > 1e-6:
            length *= 0.5
        weights = weights - length * step
        if before - after <= 1e-6 * abs(before):  # errors square from step to step: what is left is 1e-12
            break
        before = after
    return weights


def sigmoid(odds: Doubles) -> Doubles:
    """1 / (1 + exp(-odds)), float64."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(odds, -500.0, 500.0))), np.float64)
