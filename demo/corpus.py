"""Real text with a large vocabulary and no download: the docstrings of installed libraries."""

import ast
import importlib.util
import random
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

STANDARD_LIBRARY = Path(ast.__file__).parent
LIBRARIES = ("numpy", "scipy", "sklearn")  # what this demo needs anyway, and well documented
NOT_PROSE = {"dist-packages", "site-packages", "test", "tests"}

END_OF_DOCUMENT = "<end>"


def read_libraries() -> list[str]:
    """The documents of the standard library and of `LIBRARIES`, shuffled so that the end of the
    text is like its start: always in the same way."""
    roots = [STANDARD_LIBRARY, *map(library_root, LIBRARIES)]
    progress = tqdm(roots, "reading docstrings", unit="library")
    documents = [document for root in progress for document in read_documents(root)]
    random.Random(0).shuffle(documents)
    return documents


def library_root(name: str) -> Path:
    return Path(importlib.util.find_spec(name).origin).parent


def read_documents(root: Path) -> Iterator[str]:
    """One document per Python file below `root` that says something: all its docstrings."""
    for path in sorted(root.rglob("*.py")):
        if NOT_PROSE.isdisjoint(path.relative_to(root).parts):
            document = "\n\n".join(docstrings(path.read_bytes()))
            if document:
                yield document


def docstrings(source: bytes) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions. Nothing is imported or run."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other people's escape sequences
        try:
            tree = ast.parse(source)
        except SyntaxError:  # the standard library keeps a few broken files for its own tests
            return
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE, as GPT-2's: any text can be encoded, and decoding gives it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_DOCUMENT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the text gives {tokenizer.get_vocab_size()} tokens, {vocab_size} were asked for"
        )
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents as one stream of tokens, each closed by `END_OF_DOCUMENT`."""
    end = tokenizer.token_to_id(END_OF_DOCUMENT)
    encodings = tokenizer.encode_batch(documents)
    return np.concatenate([np.array([*encoding.ids, end], np.int32) for encoding in encodings])
