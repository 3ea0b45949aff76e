"""Why ours loses, as far as it is known, and what would fix it. The first that fits is shown.

What follows from the code and was not measured says "probably".
"""

from dataclasses import dataclass

from bench.cases import OPTIONS, PLAIN
from bench.results import Result
from bench.shapes import SEGMENTATION

UNKNOWN = "not known yet"


@dataclass(frozen=True)
class Cause:
    """Of the cases of a command on a device; where none of a kind is named, of all of it."""

    cause: str
    fix: str
    subject: str
    device: str = "cpu"
    shapes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    works: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def explains(self, subject: str, case: Result) -> bool:
        named = (
            (case.shape, self.shapes),
            (case.dtype, self.dtypes),
            (case.work, self.works),
            (case.option, self.options),
        )
        return (self.subject, self.device) == (subject, case.device) and all(
            not names or name in names for name, names in named
        )


IMAGES = tuple(SEGMENTATION)
SPREAD_TARGETS = ("focal+smoothing", "probabilities+focal")
PYTHON_NODE = (
    "the autograd function is Python's, since a binary for all versions of PyTorch has no node in "
    "C++",
    "a node in C++, at the price of a binary per version",
)

CUDA = {"subject": "logits", "device": "cuda", "options": (PLAIN,)}

CAUSES = (
    Cause(
        "what a row costs whatever its length: its target, its state, and the sums of its threads",
        "fewer instructions for each row, or more rows to a warp",
        shapes=("head-1000", "head-4096", "imagenet-batch"),
        **CUDA,
    ),
    Cause(
        "a row begins between two packets, and more instructions cut pieces out of them; and a "
        "block waits in turn for its target, its first packets and its threads' sums",
        "the next row under way before one is finished, at no more registers",
        shapes=("head-50257",),
        **CUDA,
    ),
    Cause(
        "a block waits in turn for its target, its packets, the other blocks of its cluster and "
        "their sums, and shared memory holds three blocks to hide that; a third fewer instructions "
        "made no difference, and multiplied in place logits move at a copy's speed",
        "probably fewer waits: a row's sums met without a barrier of the cluster",
        works=("one_pass",),
        **CUDA,
    ),
    Cause(
        "probably that a block begins a row with nothing under way",
        "the next row under way before one is finished, at no more registers",
        works=("forward",),
        **CUDA,
    ),
    Cause(
        "a focal term for every class: a polynomial in p beside the exponential, so that "
        "arithmetic sets the pace and not memory",
        "fewer multiplications per class",
        "logits",
        options=SPREAD_TARGETS,
    ),
    Cause(
        "an option's value goes through Python and the operator's schema at every call",
        "argument rules in C++, one crossing per call",
        "logits",
        shapes=("small",),
        options=tuple(OPTIONS.keys() - {PLAIN, "weight"}),
    ),
    Cause(*PYTHON_NODE, "logits", shapes=("small",)),
    Cause(*PYTHON_NODE, "small", works=("eager",)),
    Cause(
        "probably that compiled code calls our operators through the dispatcher, where PyTorch's "
        "loss becomes a part of the compiled code",
        "a lowering of the operators for the compiler",
        "small",
        works=("compiled",),
    ),
    Cause(
        "the state for a backward pass that never comes: 16 bytes a position, in new pages",
        "no state where no gradient is wanted",
        "logits",
        shapes=IMAGES,
        works=("forward",),
    ),
    Cause(
        "probably the pages of gradient and state: new memory, which the system clears",
        "larger pages, or memory that is kept between calls",
        "logits",
        shapes=IMAGES,
        works=("forward_backward",),
    ),
    Cause(
        "probably one more sum over the logits, seen where arithmetic takes as long as memory",
        "fewer additions per class",
        "logits",
        options=("smoothing",),
    ),
    Cause(
        "probably that it moves what has to be moved nearly as fast as a copy, while what PyTorch "
        "keeps between its passes still fits the last cache",
        "nothing but fewer bytes",
        "logits",
        shapes=("imagenet",),
        dtypes=("float32",),
        works=("forward_backward",),
        options=(PLAIN,),
    ),
    Cause(
        "probably the pages of the gradient: what they cost differs from call to call by more than "
        "the options do",
        "memory that is kept between calls",
        "logits",
        works=("forward_backward",),
        options=("weight+focal",),
    ),
    Cause(
        "probably that operands are copied into a tile of accumulators before they are used, "
        "whatever their dtypes and strides",
        "reading those of one dtype and without gaps where they lie",
        "sigmoid",
        works=("forward_backward",),
    ),
    Cause(
        "the difference is less than the spread of the runs",
        "more runs",
        "training",
        shapes=("language-model",),
    ),
)


def explain(subject: str, case: Result) -> str:
    """Cause and fix in a cell of a table."""
    for each in CAUSES:
        if each.explains(subject, case):
            return f"{each.cause}; {each.fix}"
    return UNKNOWN
