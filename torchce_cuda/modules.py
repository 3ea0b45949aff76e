"""The losses as modules: they hold arguments and call `functional`."""

from torch import Tensor, nn

from .functional import cross_entropy


class CrossEntropyLoss(nn.Module):
    """`cross_entropy` as a module: a drop-in for `torch.nn.CrossEntropyLoss`.

    Takes every option of `cross_entropy`; see there for shapes, dtypes and errors. `weight` (C) is
    a buffer, so it follows the module to a device and into its state_dict. The other options are
    plain attributes, read at each call; as in PyTorch, they are not checked before.
    """

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
        inplace: bool = False,
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
        self.inplace = inplace

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            gamma=self.gamma,
            z_loss=self.z_loss,
            logit_scale=self.logit_scale,
            logit_softcap=self.logit_softcap,
            normalizer=self.normalizer,
            inplace=self.inplace,
        )


class FocalLoss(CrossEntropyLoss):
    """`CrossEntropyLoss` with focal modulation on: ``gamma`` is 2 unless given.

    Per row ``w_y (1 - p_y)^gamma (-log p_y)``; the mean is divided by the sum of the weights, as in
    `cross_entropy`. Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
    """

    def __init__(self, weight: Tensor | None = None, *, gamma: float = 2.0, **options) -> None:
        super().__init__(weight, gamma=gamma, **options)
