"""From result files to the tables in the READMEs and the plots: nobody types a number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import comparison, logits_tables, results
from bench.cases import WORKS_OF_DEVICE
from bench.comparison import Comparison, Run
from bench.linear import cases as linear_cases
from bench.linear import comparison as linear_comparison
from bench.linear import tables as linear_tables
from bench.results import LinearResult, LogitsResult, Result, TrainingResult
from bench.scaling import cases as scaling_cases
from bench.scaling import tables as scaling_tables
from bench.shapes import SHAPES, Shape
from bench.sigmoid import cases as sigmoid_cases
from bench.sigmoid import comparison as sigmoid_comparison
from bench.sigmoid import tables as sigmoid_tables
from bench.small import cases as small_cases
from bench.small import tables as small_tables
from bench.tables import FULL, SUMMARY
from bench.training import cases as training_cases
from bench.training import tables as training_tables


@dataclass(frozen=True)
class Part:
    """What the documents say of one command's results, between markers of its own."""

    command: str
    file: str  # whose rows it shows, of its own shapes
    shapes: Mapping[str, Shape]
    row: type[Result]
    compare: Callable[[Sequence[Result]], Sequence[Comparison]]
    summary: Callable[[Run], str]
    full: Callable[[Run, Path], str]
    plots: Sequence[str] = ()  # names in plots.PLOTS

    @property
    def begin(self) -> str:
        return f"<!-- bench:{self.command} begin -->"

    @property
    def end(self) -> str:
        return f"<!-- bench:{self.command} end -->"

    def load(self, root: Path) -> list[Run]:
        """Every committed result under a checkout, those of CPUs first."""
        folder = root / results.FOLDER
        patterns = [f"{self.file}-{device}-*.csv" for device in WORKS_OF_DEVICE]
        runs = [self.read(path) for each in patterns for path in sorted(folder.glob(each))]
        return [run for run in runs if run.results]

    def read(self, path: Path) -> Run:
        rows = [row for row in results.read(path, self.row) if row.shape in self.shapes]
        return Run(self.command, path, rows, self.compare(rows), self.plots)


LOGITS = Part(
    "logits",
    "logits",
    SHAPES,
    LogitsResult,
    comparison.compare,
    logits_tables.summary,
    logits_tables.full,
    ("speedup", "options", "bandwidth"),
)
LINEAR = Part(
    "linear",
    "linear",
    linear_cases.SHAPES,
    LinearResult,
    linear_comparison.compare,
    linear_tables.summary,
    linear_tables.full,
)
SIGMOID = Part(
    "sigmoid",
    "logits",
    sigmoid_cases.SHAPES,
    LogitsResult,
    sigmoid_comparison.compare,
    sigmoid_tables.summary,
    sigmoid_tables.full,
)
SMALL = Part(
    "small",
    "logits",
    small_cases.SHAPES,
    LogitsResult,
    small_tables.compare,
    small_tables.summary,
    small_tables.full,
    ("latency",),
)
SCALING = Part(
    "scaling",
    "logits",
    scaling_cases.LOGITS_SHAPES,
    LogitsResult,
    scaling_tables.compare_logits,
    scaling_tables.summary,
    scaling_tables.full,
    ("growth",),
)
LINEAR_SCALING = Part(
    "linear-scaling",
    "linear",
    scaling_cases.LINEAR_SHAPES,
    LinearResult,
    scaling_tables.compare_heads,
    scaling_tables.summary,
    scaling_tables.full,
    ("growth",),
)
TRAINING = Part(
    "training",
    "training",
    training_cases.SHAPES,
    TrainingResult,
    training_tables.compare,
    training_tables.summary,
    training_tables.full,
)
PARTS = (LOGITS, LINEAR, SIGMOID, SMALL, SCALING, LINEAR_SCALING, TRAINING)


def adopt(folder: Path, root: Path) -> list[Path]:
    """Put what a GPU report measured on a GPU among the committed results; returns their files."""
    adopted = []
    for name, kind in dict.fromkeys((part.file, part.row) for part in PARTS):
        path = folder / f"{name}.csv"
        rows = results.read(path, kind) if path.exists() else []
        if rows and rows[0].device == "cuda":
            where = (rows[0].device, rows[0].machine, int(rows[0].threads))
            committed = root / results.FOLDER / f"{name}-{results.file_name(*where)}"
            results.merge(committed, rows, kind)
            adopted.append(committed)
    return adopted


def draw(run: Run) -> list[Path]:
    """Draw the plots that do not show the results; returns them."""
    from bench import plots

    drawn = [path for path in run.plots if not _shows(path, run)]
    for name, path in zip(run.plot_names, run.plots, strict=True):
        if path in drawn:
            plots.PLOTS[name](run.comparisons, path, run.digest)
    return drawn


def write(root: Path) -> list[Path]:
    """Render tables and plots; returns the files that changed."""
    changed = [path for part in PARTS for run in part.load(root) for path in draw(run)]
    for path, text in _documents(root).items():
        if path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    return changed


def stale(root: Path) -> list[Path]:
    """Files that do not show the committed results."""
    runs = [run for part in PARTS for run in part.load(root)]
    wrong_plots = [path for run in runs for path in run.plots if not _shows(path, run)]
    wrong_texts = [path for path, text in _documents(root).items() if path.read_text() != text]
    return wrong_plots + wrong_texts


def replace_between_markers(document: Path, text: str, part: Part, body: str) -> str:
    """The text of a document with everything between a part's markers replaced."""
    if text.count(part.begin) != 1 or text.count(part.end) != 1:
        raise ValueError(f"{document}: expected {part.begin} and {part.end} once each")
    before, rest = text.split(part.begin)
    _, after = rest.split(part.end)
    return f"{before}{part.begin}\n{body}\n{part.end}{after}"


def _documents(root: Path) -> dict[Path, str]:
    """What the documents should say."""
    texts = {document: (root / document).read_text() for document in (SUMMARY, FULL)}
    for part in PARTS:
        runs = part.load(root)
        bodies = {
            SUMMARY: map(part.summary, runs),
            FULL: (part.full(run, Path(results.FOLDER.name)) for run in runs),
        }
        for document, body in bodies.items():
            said = "\n\n".join(body) or f"Not measured yet: `python -m bench {part.command}` does."
            texts[document] = replace_between_markers(document, texts[document], part, said)
    return {root / document: text for document, text in texts.items()}


def _shows(plot: Path, run: Run) -> bool:
    return plot.exists() and run.digest.encode() in plot.read_bytes()
