"""Named shapes in order of worth, the works and options measured, and what must be reached."""

from dataclasses import dataclass

import torch

from bench.cases import PLAIN, WORKS_OF_DEVICE, Option
from bench.shapes import Shape

# There is no form that may overwrite the logits.
WORKS = {
    device: tuple(work for work in works if work != "one_pass")
    for device, works in WORKS_OF_DEVICE.items()
}

OPTIONS = {
    option.name: option
    for option in (
        Option(PLAIN),  # binary cross entropy
        Option("weight", weighted=True),
        Option("focal", arguments={"gamma": 2.0, "alpha": 0.25}),
        Option("weight+focal", weighted=True, arguments={"gamma": 2.0, "alpha": 0.25}),
    )
}


SEVERAL = "several labels in a row"  # a trait of shapes


@dataclass(frozen=True)
class SigmoidShape(Shape):
    """Logits [N, C], and labels of the same size: 1 for yes, 0 for no."""

    share: float = 0.0  # of the labels that are yes; 0: one at most in each row

    @property
    def traits(self) -> frozenset[str]:
        return super().traits | ({SEVERAL} if self.share else frozenset())

    def draw_target(self, generator: torch.Generator) -> torch.Tensor:
        device = generator.device
        if self.share:
            shares = torch.full(self.size, self.share, device=device)
            return torch.bernoulli(shares, generator=generator)
        # One class more than there are: the background, of which no label is yes.
        background = self.cols
        index = torch.randint(self.cols + 1, self.target_size, generator=generator, device=device)
        labels = torch.nn.functional.one_hot(index, self.cols + 1)
        return labels[:, :background].float()


def _detection(name: str, rows: int, device: str) -> SigmoidShape:
    why = "boxes of a detector over the 80 classes of COCO, at most one of them right"
    return SigmoidShape(name, (rows, 80), why, options=tuple(OPTIONS), devices=(device,))


def _multi_label(name: str, rows: int, device: str) -> SigmoidShape:
    why = "labels of a picture or a text: 1 % of thousands are right"
    size = (rows, 8192)
    return SigmoidShape(name, size, why, options=tuple(OPTIONS), devices=(device,), share=0.01)


SHAPES = {
    shape.name: shape
    for shape in (
        _detection("detection", 65536, "cpu"),
        _multi_label("multi-label", 1024, "cpu"),
        _detection("detection-batch", 1 << 22, "cuda"),
        _multi_label("multi-label-batch", 32768, "cuda"),
        SigmoidShape(
            "few-boxes",
            (64, 80),
            "a rehearsal: measured where it is named only",
            options=tuple(OPTIONS),
            devices=(),
        ),
    )
}
