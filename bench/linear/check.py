"""The loss of a head and both of its gradients against float64."""

import torch

from bench.cases import Option
from bench.check import Expected, relative_error
from bench.problem import Problem


class LinearExpected(Expected):
    """Loss and gradients of hidden states and head.

    The head's gradient is compared apart at the classes that are some row's target: elsewhere it is
    far smaller.
    """

    def __init__(self, problem: Problem, option: Option):
        super().__init__(problem, option)
        is_target = torch.zeros(problem.shape.cols, dtype=torch.bool, device=problem.device)
        is_target[problem.target] = True
        self.classes = {"head_target": is_target, "head_other": ~is_target}

    def gradient_errors(self, hidden: torch.Tensor, head: torch.Tensor) -> dict[str, float]:
        expected_hidden, expected_head = self.gradients
        errors = {"hidden": relative_error([(hidden, expected_hidden)])}
        for name, classes in self.classes.items():
            if classes.any():
                errors[name] = relative_error([(head[classes], expected_head[classes])])
        return errors
