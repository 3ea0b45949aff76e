"""What is measured at each shape: the work, the options of the loss, and what must be reached."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

WORKS = {
    "forward": "forward",  # the loss alone: nothing requires a gradient
    "backward": "backward",  # the gradient of a leaf whose loss is known
    "forward_backward": "forward + backward",  # both
    "one_pass": "one pass in place",  # the same of a layer's output, which ours may overwrite
}

# How a call is made that takes less than what leads to it: the works of `small`.
MODES = {
    "eager": "eager call",
    "compiled": "compiled call",  # by torch.compile, of a function that calls the loss
    "graph": "replay of a CUDA graph",
}

STEP = "step"  # the work of `training`

TITLES = WORKS | MODES | {STEP: "training step"}

# On a CPU the gradient of a small problem is made in the forward pass, so there is no backward pass
# to time alone.
WORKS_OF_DEVICE = {"cpu": ("forward", "forward_backward", "one_pass"), "cuda": tuple(WORKS)}


WEIGHT, PROBABILITIES = "weight", "probabilities"


@dataclass(frozen=True)
class Option:
    """One way to call the loss; `arguments` are keywords of ours."""

    name: str
    weighted: bool = False  # a weight per class
    probabilities: bool = False  # a distribution over the classes as target, not an index
    arguments: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def asks_for(self) -> frozenset[str]:
        """What a provider has to understand."""
        asked = {WEIGHT: self.weighted, PROBABILITIES: self.probabilities}
        return frozenset(self.arguments) | {name for name, wanted in asked.items() if wanted}


PLAIN = "plain"

OPTIONS = {
    option.name: option
    for option in (
        Option(PLAIN),
        Option("weight", weighted=True),
        Option("focal", arguments={"gamma": 2.0}),
        Option("smoothing", arguments={"label_smoothing": 0.1}),
        Option("z-loss", arguments={"z_loss": 1e-4}),
        Option("weight+focal", weighted=True, arguments={"gamma": 2.0}),
        Option("focal+smoothing", arguments={"gamma": 2.0, "label_smoothing": 0.1}),
        Option("probabilities", probabilities=True),
        Option("probabilities+focal", probabilities=True, arguments={"gamma": 2.0}),
        Option("softcap", arguments={"logit_softcap": 30.0}),
        Option(
            "all",
            weighted=True,
            arguments={"gamma": 2.0, "label_smoothing": 0.1, "z_loss": 1e-4, "logit_softcap": 30.0},
        ),
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

# Time of ours with the option / ours plain, at most: device -> option -> ratio. Probabilities
# without focal modulation have none: as many bytes as the logits are read on top, so the plain time
# says little.
OPTION_BUDGETS = {
    "cpu": {
        "weight": 1.1,
        "focal": 1.1,
        "smoothing": 1.1,
        "weight+focal": 1.1,
        "focal+smoothing": 1.6,
        "probabilities+focal": 1.6,
    },
    "cuda": {
        "weight": 1.05,
        "focal": 1.05,
        "smoothing": 1.05,
        "z-loss": 1.05,
        "focal+smoothing": 1.05,
        "softcap": 1.15,
    },
}

# Bandwidth of ours / of a copy, at least: (shape, work) -> share. Plain loss, on a CUDA device.
COPY_BUDGETS = {
    (f"head-{cols}", work): 0.88
    for cols in (1000, 4096, 32000, 50257, 50264, 65536, 151936, 256000)
    for work in ("forward", "backward", "one_pass")
} | {
    ("head-128256", "forward"): 0.92,
    ("head-128256", "backward"): 0.92,
    ("head-128256", "one_pass"): 0.90,
}
