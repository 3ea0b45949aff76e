"""What a GPU report measures, in order of worth: what the time does not suffice for comes last."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """Arguments of `python -m bench`, and the most seconds that they may take."""

    name: str
    seconds: int
    arguments: str


PASSES = "--works forward backward one_pass"
HEADLINES = (
    Benchmark("forward", 50, "logits --shapes head-128256 --dtypes bfloat16 --works forward"),
    Benchmark(
        "backward",
        55,
        "logits --shapes head-128256 --dtypes bfloat16 --works backward forward_backward",
    ),
    Benchmark("one pass", 50, "logits --shapes head-128256 --dtypes bfloat16 --works one_pass"),
)
FURTHER_BENCHMARKS = (
    Benchmark(
        "odd, short and long rows",
        75,
        f"logits --shapes head-50257 head-50264 head-1000 head-256000 {PASSES}",
    ),
    Benchmark("linear", 90, "linear --shapes llama3-8b"),
    Benchmark(
        "options",
        40,
        "logits --shapes llama2-batch --dtypes bfloat16 --providers torchce_cuda F.cross_entropy "
        "--options plain focal weight smoothing z-loss softcap focal+smoothing all",
    ),
    Benchmark("small calls", 75, "small"),
    Benchmark("training, a large head", 90, "training --shapes gemma-head"),
    Benchmark(
        "other vocabularies", 60, f"logits --shapes head-32000 head-151936 head-4096 {PASSES}"
    ),
    Benchmark(
        "float32 and float16",
        50,
        "logits --shapes head-128256 llama2-batch --dtypes float32 float16 --options plain "
        f"{PASSES}",
    ),
    Benchmark("linear, other heads", 90, "linear --shapes qwen gemma2-2b gpt2"),
    Benchmark(
        "segmentation, small shapes",
        60,
        "logits --shapes segmentation cityscapes volume small imagenet-batch --options plain",
    ),
    Benchmark("training, GPT-2", 90, "training --shapes gpt2"),
    Benchmark("scaling", 75, "scaling"),
    Benchmark("linear, scaling", 75, "linear-scaling"),
)
REHEARSAL = (
    Benchmark(
        "forward",
        60,
        "logits --shapes small --providers torchce_cuda F.cross_entropy --options plain focal "
        "--works forward forward_backward",
    ),
    Benchmark("linear", 60, "linear --shapes small --providers torchce_cuda"),
    Benchmark("small calls", 60, "small --shapes 64x10 --works eager --providers torchce_cuda"),
    Benchmark("training", 60, "training --shapes rehearsal --providers torchce_cuda"),
    Benchmark("scaling", 60, "scaling --shapes classes-1024x1000 --providers torchce_cuda"),
)
