"""Multinomial logistic regression with an L2 penalty, solved to its optimum by L-BFGS in float64, for a path of C.

Shapes: N samples, D width, K classes, M rows of weights: K, or 1 where K is 2, as scikit-learn has it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.errors import FovealError

_MEMORY = 10  # pairs that the Hessian is approximated from
_WINDOW = 10
_RENEW = 30  # steps after which the scale is that of other weights
_BLOCK_NUMBERS = 2**26  # logits at a time: half a GB


class Fit(NamedTuple):
    """The optimum for one C.

    Attributes:
        c: inverse strength of the penalty.
        weight: (M, D) float64.
        bias: (M,) float64.
        classes: (K,) int64, ascending: the labels that were seen.
        objective: at the optimum; see `fit_path`.
        steps: that it took.
    """

    c: float
    weight: Tensor
    bias: Tensor
    classes: Tensor
    objective: float
    steps: int

    def scores(self, features: Tensor) -> Tensor:
        """Return the logits (N, K) float64 of features (N, D), in the order of `classes`."""
        return _all_logits(features.to(self.weight) @ self.weight.T + self.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Return the most probable label (N,) of features (N, D)."""
        return self.classes[self.scores(features).argmax(dim=1)]


def fit_path(
    features: Tensor, labels: Tensor, cs: Sequence[float], *, start: Fit | None = None, max_steps: int = 1000
) -> Iterator[Fit]:
    """Fit for each C in ascending order, each from the optimum of the one before.

    The objective is that of scikit-learn: sum over samples of the cross-entropy, plus |weight|^2 / (2 C); the bias is
    free. It is solved in the principal axes of the centred features, which changes neither the optimum nor the penalty,
    and makes the diagonal of the Hessian a good scale for L-BFGS (Liu and Nocedal 1989): raw features of a backbone
    span orders of magnitude, along which the plain method crawls.

    Args:
        features: (N, D) float, not normalised; the device decides where it is solved.
        labels: (N,) int64.
        cs: above 0.
        start: weights to begin from.
        max_steps: of each C.

    Raises:
        FovealError: fewer than two classes, a C that is not above 0, or features that are not finite.
    """
    if not cs or min(cs) <= 0:
        raise FovealError(f"C={', '.join(f'{c:g}' for c in cs) or 'none'}; give values above 0")
    classes, targets = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise FovealError(f"{len(labels)} samples of {len(classes)} class; logistic regression needs two classes")
    if not features.isfinite().all():
        raise FovealError("features hold NaN or infinity; use an earlier checkpoint of the model")
    problem = _Problem(features, targets, len(classes))
    if start is not None and not torch.equal(start.classes, classes):
        raise FovealError("the start was fitted to other classes; leave it out")
    theta = problem.zeros() if start is None else problem.enter(start.weight, start.bias)
    for c in sorted(cs):
        theta, objective, steps = _minimise(problem, theta, 1 / c, max_steps)
        weight, bias = problem.leave(theta)
        yield Fit(c, weight, bias, classes, objective, steps)
        theta = problem.enter(weight, bias)  # to the bit as a path that starts from this fit


class _Problem:
    """The objective in the principal axes of the features; theta is (M, D + 1), the bias last."""

    def __init__(self, features: Tensor, targets: Tensor, num_classes: int) -> None:
        whole = features.double()
        self.mean = whole.mean(dim=0)
        centred = whole - self.mean
        _, self.axes = torch.linalg.eigh(centred.T @ centred)
        self.inputs = torch.cat([centred @ self.axes, whole.new_ones(len(whole), 1)], dim=1)
        self.squares = self.inputs.square()
        self.targets = targets.to(whole.device)
        self.num_rows = 1 if num_classes == 2 else num_classes
        self.num_classes = num_classes
        self.block = max(1, _BLOCK_NUMBERS // num_classes)

    def zeros(self) -> Tensor:
        return self.inputs.new_zeros(self.num_rows, self.inputs.shape[1])

    def enter(self, weight: Tensor, bias: Tensor) -> Tensor:
        weight = weight.to(self.inputs)
        return torch.cat([weight @ self.axes, (bias.to(self.inputs) + weight @ self.mean)[:, None]], dim=1)

    def leave(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        weight = theta[:, :-1] @ self.axes.T
        return weight, theta[:, -1] - weight @ self.mean

    def evaluate(self, theta: Tensor, penalty: float) -> tuple[float, Tensor]:
        """Return the objective and its gradient (M, D + 1)."""
        loss, gradient = theta.new_zeros(()), penalty * theta
        gradient[:, -1] = 0
        for inputs, targets in zip(self.inputs.split(self.block), self.targets.split(self.block), strict=True):
            logits = _all_logits(inputs @ theta.T)
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            loss += (log_sum.squeeze(1) - logits.gather(1, targets[:, None]).squeeze(1)).sum()
            excess = (logits - log_sum).exp_()
            excess[torch.arange(len(targets)), targets] -= 1
            gradient += excess[:, self.num_classes - self.num_rows :].T @ inputs
        return float(loss + penalty / 2 * theta[:, :-1].square().sum()), gradient

    def scale(self, theta: Tensor, penalty: float) -> Tensor:
        """Return one over the diagonal of the Hessian, (M, D + 1)."""
        diagonal = torch.full_like(theta, penalty)
        diagonal[:, -1] = 0
        for inputs, squares in zip(self.inputs.split(self.block), self.squares.split(self.block), strict=True):
            share = _all_logits(inputs @ theta.T).softmax(dim=1)[:, self.num_classes - self.num_rows :]
            diagonal += (share * (1 - share)).T @ squares
        return diagonal.clamp_(min=1e-12 * float(diagonal.max())).reciprocal_()


def _scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """Return a scaled gradient whose rows sum to 0, as those of the optimum and of every gradient on the way do.

    Along a sum of all rows only the penalty bends the objective: steps must not go there.
    """
    step = gradient * scale
    return step if len(step) == 1 else step - step.mean(dim=0)


def _all_logits(logits: Tensor) -> Tensor:
    """Return logits of all classes: the one row of two classes is the second's, the first's are 0."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _minimise(
    problem: _Problem, theta: Tensor, penalty: float, max_steps: int, *, rtol: float = 1e-8
) -> tuple[Tensor, float, int]:
    """Return the optimum, its objective and the steps that it took.

    It ends where the last ten steps lowered the objective by less than `rtol` of it, or where the gradient promises
    nothing that rounding would leave.
    """
    value, gradient = problem.evaluate(theta, penalty)
    scale = problem.scale(theta, penalty)
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_MEMORY)
    values: deque[float] = deque(maxlen=_WINDOW)
    for step in range(max_steps):
        if step and step % _RENEW == 0:
            scale = problem.scale(theta, penalty)
        direction = _direction(gradient, pairs, scale)
        slope = float((direction * gradient).sum())
        if -slope <= 1e-14 * value or (len(values) == _WINDOW and values[0] - value <= rtol * value):
            return theta, value, step
        length = 1.0
        while True:
            tried = theta + length * direction
            new_value, new_gradient = problem.evaluate(tried, penalty)
            if new_value <= value + 1e-4 * length * slope:
                break
            length *= max(0.1, min(0.5, -slope * length / (2 * (new_value - value - length * slope))))
            if length < 1e-10:
                return theta, value, step  # no step helps any more: rounding
        change, bend = tried - theta, new_gradient - gradient
        if (product := float((change * bend).sum())) > 0:
            pairs.append((change, bend, product))
        values.append(value)
        theta, value, gradient = tried, new_value, new_gradient
    return theta, value, max_steps


def _direction(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor, float]], scale: Tensor) -> Tensor:
    """Return minus the approximate inverse Hessian times the gradient: the two loops of L-BFGS."""
    direction, weights = -gradient, []
    for change, bend, product in reversed(pairs):
        weights.append(float((change * direction).sum()) / product)
        direction = direction - weights[-1] * bend
    direction = _scaled(direction, scale)
    if pairs:
        _, bend, product = pairs[-1]
        direction *= product / float((bend * _scaled(bend, scale)).sum())
    for (change, bend, product), weight in zip(pairs, reversed(weights), strict=True):
        direction = direction + (weight - float((bend * direction).sum()) / product) * change
    return direction
