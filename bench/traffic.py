"""Bytes that the work itself must move, whoever does it: the logits, the gradient, the targets.

A provider that makes several passes or copies moves more and so reaches a smaller share of the
copy bandwidth. Left out, as the loss can be had without: one float per row (a saved log-sum-exp),
the class weights, which stay in cache, and the scalar loss.
"""

from bench.cases import MODES

INDEX_BYTES = 8  # class indices are int64


def target_bytes(rows: int, cols: int, element_bytes: int, probabilities: bool) -> int:
    """Bytes to read the target once."""
    return rows * cols * element_bytes if probabilities else rows * INDEX_BYTES


def forward(rows: int, cols: int, element_bytes: int, probabilities: bool = False) -> int:
    """Read the logits once, and the target."""
    return rows * cols * element_bytes + target_bytes(rows, cols, element_bytes, probabilities)


def backward(rows: int, cols: int, element_bytes: int, probabilities: bool = False) -> int:
    """Read the logits, write the gradient, read the target."""
    return 2 * rows * cols * element_bytes + target_bytes(rows, cols, element_bytes, probabilities)


def forward_backward(rows: int, cols: int, element_bytes: int, probabilities: bool = False) -> int:
    """The gradient waits for the backward pass, so everything is read twice."""
    problem = (rows, cols, element_bytes, probabilities)
    return forward(*problem) + backward(*problem)


def one_pass(rows: int, cols: int, element_bytes: int, probabilities: bool = False) -> int:
    """Read each logit once and write its gradient once: the row stays in cache in between."""
    return backward(rows, cols, element_bytes, probabilities)


def copy(rows: int, cols: int, element_bytes: int) -> int:
    """Copy the logits: the read and the write, the 100 % that everything is compared with."""
    return 2 * rows * cols * element_bytes


BYTES_OF_WORK = {
    "forward": forward,
    "backward": backward,
    "forward_backward": forward_backward,
    "one_pass": one_pass,
    **dict.fromkeys(MODES, forward_backward),
}
