"""Series of shapes that differ in one number, over five octaves of it."""

from dataclasses import dataclass

from bench.linear.cases import LinearShape
from bench.shapes import Shape

OCTAVES = 5
ROWS, CLASSES = "rows", "classes"


@dataclass(frozen=True)
class Series:
    """Shapes in the order of what grows; `index` is its place in their sizes."""

    grows: str
    index: int
    shapes: tuple[Shape, ...]

    def size(self, name: str) -> int:
        """The number that is a shape's own."""
        return next(shape.size[self.index] for shape in self.shapes if shape.name == name)


def series(
    kind: type[Shape], grows: str, first: tuple[int, ...], device: str, dtype: str
) -> Series:
    """`first`, and five times twice as much."""
    index = 0 if grows == ROWS else len(first) - 1
    sizes = [
        (*first[:index], first[index] << octave, *first[index + 1 :])
        for octave in range(OCTAVES + 1)
    ]
    shapes = [
        kind(f"{grows}-{'x'.join(map(str, size))}", size, "", dtypes=(dtype,), devices=(device,))
        for size in sizes
    ]
    return Series(grows, index, tuple(shapes))


LOGITS_SERIES = (
    series(Shape, ROWS, (64, 32000), "cpu", "float32"),
    series(Shape, CLASSES, (1024, 1000), "cpu", "float32"),
    series(Shape, ROWS, (512, 128256), "cuda", "bfloat16"),
    series(Shape, CLASSES, (8192, 8192), "cuda", "bfloat16"),
)
LINEAR_SERIES = (
    series(LinearShape, ROWS, (128, 256, 32000), "cpu", "float32"),
    series(LinearShape, ROWS, (1024, 2048, 128256), "cuda", "bfloat16"),
)
LOGITS_SHAPES = {shape.name: shape for each in LOGITS_SERIES for shape in each.shapes}
LINEAR_SHAPES = {shape.name: shape for each in LINEAR_SERIES for shape in each.shapes}
