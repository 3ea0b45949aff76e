"""The models, and the memory that their steps may take."""

from dataclasses import dataclass, replace

from bench.shapes import Shape

HEAD_SIZE = 64  # features of an attention head


@dataclass(frozen=True)
class TrainingShape(Shape):
    """A transformer; `size` is (batch, context, width, layers, vocabulary)."""

    memory_limit: int = 0  # bytes, of model, optimizer and step together

    @property
    def batch(self) -> int:
        return self.size[0]

    @property
    def logits_size(self) -> tuple[int, ...]:
        batch, context, *_, vocabulary = self.size
        return (batch * context, vocabulary)

    @property
    def inputs(self) -> tuple[tuple[tuple[int, ...], float], ...]:
        return ()

    @property
    def model(self) -> dict[str, int]:
        """Arguments of the transformer."""
        _, context, width, layers, vocabulary = self.size
        return {
            "vocab_size": vocabulary,
            "context": context,
            "width": width,
            "heads": max(1, width // HEAD_SIZE),
            "layers": layers,
        }

    def with_batch(self, batch: int) -> "TrainingShape":
        return replace(self, size=(batch, *self.size[1:]))


def _shape(name, size, why, dtype, device, mebibytes) -> TrainingShape:
    devices = (device,) if device else ()
    limit = mebibytes << 20
    return TrainingShape(name, size, why, (dtype,), devices=devices, memory_limit=limit)


SHAPES = {
    shape.name: shape
    for shape in (
        _shape(
            "language-model",
            (8, 128, 256, 4, 8192),
            "most of the step is the model's own",
            "float32",
            "cpu",
            256,
        ),
        _shape(
            "head-heavy",
            (8, 64, 128, 1, 50257),
            "most of the step is the head and its loss",
            "float32",
            "cpu",
            256,
        ),
        _shape("gpt2", (8, 1024, 768, 12, 50257), "GPT-2 small", "bfloat16", "cuda", 24 << 10),
        _shape(
            "gemma-head",
            (4, 2048, 1024, 2, 256000),
            "few layers under the largest vocabulary in wide use",
            "bfloat16",
            "cuda",
            24 << 10,
        ),
        _shape(
            "rehearsal", (2, 16, 16, 1, 300), "measured where it is named only", "float32", "", 4
        ),
    )
}
