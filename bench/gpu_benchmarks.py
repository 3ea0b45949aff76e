"""What a GPU report measures, in order of worth: what the time does not suffice for comes last.

What is measured again replaces what was measured before, as a whole, so that all that is compared
is of the same rounds. So whatever takes part in a benchmark takes part in later ones of the same
shape, dtype and work.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """Arguments of `python -m bench`, and the most seconds that they may take."""

    name: str
    seconds: int
    arguments: str


PASSES = "--works forward backward one_pass"
BFLOAT16 = "--dtypes bfloat16"
# Those who are fast or much used. Everybody is measured too, but later: some compile for long.
CHOSEN = "--providers torchce_cuda F.cross_entropy torch.compile Liger QuACK flash-attn"
CHOSEN_LINEAR = (
    "--providers torchce_cuda 'F.linear + F.cross_entropy' torch.compile F.linear_cross_entropy "
    "Liger 'Liger CuTe' cut-cross-entropy QuACK"
)
CHOSEN_SMALL = "--providers torchce_cuda F.cross_entropy QuACK flash-attn"
HEADLINES = (
    Benchmark("forward", 50, f"logits --shapes head-128256 {BFLOAT16} --works forward {CHOSEN}"),
    Benchmark(
        "backward",
        55,
        f"logits --shapes head-128256 {BFLOAT16} --works backward forward_backward {CHOSEN}",
    ),
    Benchmark("one pass", 50, f"logits --shapes head-128256 {BFLOAT16} --works one_pass {CHOSEN}"),
)
NEXT_BENCHMARKS = (
    Benchmark(
        "odd, short and long rows",
        75,
        f"logits --shapes head-50257 head-50264 head-1000 head-256000 {BFLOAT16} {PASSES} {CHOSEN}",
    ),
    Benchmark("linear", 90, f"linear --shapes llama3-8b {CHOSEN_LINEAR}"),
)
FURTHER_BENCHMARKS = (
    Benchmark("options", 100, f"logits --shapes llama2-batch {BFLOAT16} {CHOSEN} fla mmcv"),
    Benchmark("small calls", 75, f"small {CHOSEN_SMALL}"),
    Benchmark(
        "options, a large vocabulary",
        40,
        "logits --shapes llama3-batch --providers torchce_cuda",
    ),
    Benchmark("training, a large head", 90, "training --shapes gemma-head"),
    Benchmark("every provider", 120, f"logits --shapes head-128256 {BFLOAT16} {PASSES}"),
    Benchmark("linear, every provider", 150, "linear --shapes llama3-8b"),
    Benchmark("linear, of a trained model", 90, "linear --shapes trained-batch"),
    Benchmark(
        "other vocabularies",
        75,
        f"logits --shapes head-32000 head-151936 head-4096 head-65536 {BFLOAT16} {PASSES} {CHOSEN}",
    ),
    Benchmark("of a trained model", 90, f"logits --shapes trained-batch {BFLOAT16} {PASSES}"),
    Benchmark(
        "linear, other heads", 90, f"linear --shapes qwen2.5-3b gemma2-2b gpt2 {CHOSEN_LINEAR}"
    ),
    Benchmark("sigmoid", 60, f"sigmoid {BFLOAT16}"),
    Benchmark(
        "float32 and float16",
        120,
        "logits --shapes head-128256 llama2-batch --dtypes float32 float16 --options plain "
        f"{PASSES} {CHOSEN}",
    ),
    Benchmark("every provider, options", 120, f"logits --shapes llama2-batch {BFLOAT16}"),
    Benchmark(
        "segmentation, small shapes",
        60,
        "logits --shapes segmentation cityscapes volume small imagenet-batch --options plain",
    ),
    Benchmark(
        "linear, many features",
        120,
        f"linear --shapes deepseek-v3 llama3-70b {CHOSEN_LINEAR}",
    ),
    Benchmark("training, GPT-2", 90, "training --shapes gpt2"),
    Benchmark("scaling", 75, f"scaling {CHOSEN}"),
    Benchmark("linear, scaling", 75, f"linear-scaling {CHOSEN_LINEAR}"),
    Benchmark("sigmoid, float32", 60, "sigmoid --dtypes float32"),
    Benchmark(
        "other vocabularies, float32 and float16",
        180,
        "logits --shapes head-50257 head-1000 head-256000 head-32000 head-151936 head-4096 "
        f"head-65536 --dtypes float32 float16 {PASSES} {CHOSEN}",
    ),
)
REHEARSAL = (
    Benchmark(
        "forward",
        60,
        "logits --shapes small --providers torchce_cuda F.cross_entropy --options plain focal "
        "--works forward forward_backward",
    ),
    Benchmark("linear", 60, "linear --shapes small --providers torchce_cuda"),
    Benchmark("sigmoid", 60, "sigmoid --shapes few-boxes --providers torchce_cuda"),
    Benchmark("small calls", 60, "small --shapes 64x10 --works eager --providers torchce_cuda"),
    Benchmark("training", 60, "training --shapes rehearsal --providers torchce_cuda"),
    Benchmark("scaling", 60, "scaling --shapes classes-1024x1000 --providers torchce_cuda"),
)
