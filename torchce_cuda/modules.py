"""The losses as modules: they hold arguments and call the functions."""

from torch import Tensor, dtype, nn

from .functional import cross_entropy
from .linear import linear_cross_entropy
from .sigmoid import binary_cross_entropy_with_logits, sigmoid_focal_loss


class _RowLoss(nn.Module):
    """The options of a row's loss, plain attributes but for `weight`."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        gamma: float = 0.0,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        normalizer: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.weight: Tensor | None
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        self.z_loss = z_loss
        self.logit_scale = logit_scale
        self.logit_softcap = logit_softcap
        self.normalizer = normalizer

    def row_options(self) -> dict:
        return {
            "weight": self.weight,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "label_smoothing": self.label_smoothing,
            "gamma": self.gamma,
            "z_loss": self.z_loss,
            "logit_scale": self.logit_scale,
            "logit_softcap": self.logit_softcap,
            "normalizer": self.normalizer,
        }


class CrossEntropyLoss(_RowLoss):
    """`cross_entropy` as a module: a drop-in for `torch.nn.CrossEntropyLoss`.

    Takes every option of `cross_entropy`; see there for shapes, dtypes and errors. `weight` (C) is
    a buffer, so it follows the module to a device and into its state_dict. The other options are
    plain attributes, read at each call; as in PyTorch, they are not checked before.
    """

    def __init__(self, weight: Tensor | None = None, *, inplace: bool = False, **options) -> None:
        super().__init__(weight, **options)
        self.inplace = inplace

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(input, target, inplace=self.inplace, **self.row_options())


class FocalLoss(CrossEntropyLoss):
    """`CrossEntropyLoss` with focal modulation on: ``gamma`` is 2 unless given.

    Per row ``w_y (1 - p_y)^gamma (-log p_y)``; the mean is divided by the sum of the weights, as in
    `cross_entropy`. Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """

    def __init__(self, weight: Tensor | None = None, *, gamma: float = 2.0, **options) -> None:
        super().__init__(weight, gamma=gamma, **options)


class LinearCrossEntropyLoss(_RowLoss):
    """`linear_cross_entropy` as a module: holds the loss's options, and not the head.

    The head stays where it is, with one owner and one entry in a state_dict: an `nn.Linear`, or the
    embedding that it is tied to (`torch.nn.LinearCrossEntropyLoss` owns an `nn.Linear` instead, and
    has other arguments). It is passed at the call::

        loss = LinearCrossEntropyLoss(z_loss=1e-4)
        loss(hidden, head.weight, target, linear_bias=head.bias)
        loss(hidden, embedding.weight, target)

    A tied weight gets the sum of both gradients, as autograd gives it. Takes every option of
    `linear_cross_entropy`; see there for shapes, dtypes and errors. `weight` (C), a factor per
    class, is a buffer; the other options are plain attributes, read at each call.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        chunk_rows: int | None = None,
        accumulate_dtype: dtype | None = None,
        **options,
    ) -> None:
        super().__init__(weight, **options)
        self.chunk_rows = chunk_rows
        self.accumulate_dtype = accumulate_dtype

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
    ) -> Tensor:
        return linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            chunk_rows=self.chunk_rows,
            accumulate_dtype=self.accumulate_dtype,
            **self.row_options(),
        )


class _ElementLoss(nn.Module):
    """The options of an element's loss, plain attributes but for `weight` and `pos_weight`."""

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        pos_weight: Tensor | None = None,
        ignore_value: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)
        self.weight: Tensor | None
        self.pos_weight: Tensor | None
        self.ignore_value = ignore_value
        self.reduction = reduction

    def element_options(self) -> dict:
        return {
            "weight": self.weight,
            "pos_weight": self.pos_weight,
            "ignore_value": self.ignore_value,
            "reduction": self.reduction,
        }


class BCEWithLogitsLoss(_ElementLoss):
    """`binary_cross_entropy_with_logits` as a module: a drop-in for `torch.nn.BCEWithLogitsLoss`.

    `weight` and `pos_weight` are buffers, the other options plain attributes, read at each call;
    all but `weight` are passed by name.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(input, target, **self.element_options())


class SigmoidFocalLoss(_ElementLoss):
    """`sigmoid_focal_loss` as a module, with the options of `BCEWithLogitsLoss`.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        alpha: float | None = None,
        gamma: float = 2.0,
        **options,
    ) -> None:
        super().__init__(weight, **options)
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return sigmoid_focal_loss(
            input, target, alpha=self.alpha, gamma=self.gamma, **self.element_options()
        )
