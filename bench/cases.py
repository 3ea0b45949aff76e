"""What is measured at each shape: the work, the options of the loss, and what must be reached."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

WORKS = {
    "forward": "forward",  # the loss alone: nothing requires a gradient
    "forward_backward": "forward + backward",  # loss and gradient of a leaf
    "one_pass": "one pass in place",  # the same of a layer's output, which ours may overwrite
}


@dataclass(frozen=True)
class Option:
    """One way to call the loss; `arguments` are keywords of `torchce_cuda.cross_entropy`."""

    name: str
    weighted: bool = False  # a weight per class
    probabilities: bool = False  # a distribution over the classes as target, not an index
    arguments: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


PLAIN = "plain"

OPTIONS = {
    option.name: option
    for option in (
        Option(PLAIN),
        Option("weight", weighted=True),
        Option("focal", arguments={"gamma": 2.0}),
        Option("smoothing", arguments={"label_smoothing": 0.1}),
        Option("weight+focal", weighted=True, arguments={"gamma": 2.0}),
        Option("focal+smoothing", arguments={"gamma": 2.0, "label_smoothing": 0.1}),
        Option("probabilities", probabilities=True),
        Option("probabilities+focal", probabilities=True, arguments={"gamma": 2.0}),
        Option("softcap", arguments={"logit_softcap": 30.0}),
    )
}

# Time of F.cross_entropy / ours, at least: (shape, dtype, work) -> ratio. Plain loss, on a CPU.
SPEEDUP_BUDGETS = {
    ("llama2", "float32", "forward"): 3.0,
    ("llama2", "float32", "forward_backward"): 5.0,
    ("llama2", "float32", "one_pass"): 9.0,
    ("llama2", "bfloat16", "forward_backward"): 5.0,
    ("llama2", "bfloat16", "one_pass"): 5.0,
    ("imagenet", "float32", "forward_backward"): 3.0,
    ("segmentation", "float32", "forward_backward"): 3.0,
    ("small", "float32", "forward_backward"): 1.0,
}

# Time of ours with the option / ours plain, at most: option -> ratio. Probabilities without focal
# modulation have none: as many bytes as the logits are read on top, so the plain time says little.
OPTION_BUDGETS = {
    "weight": 1.1,
    "focal": 1.1,
    "smoothing": 1.1,
    "weight+focal": 1.1,
    "focal+smoothing": 1.6,
    "probabilities+focal": 1.6,
}
