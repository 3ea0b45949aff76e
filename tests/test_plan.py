"""`choose_plan`: which CUDA kernel, with how many threads. A function of numbers: no GPU needed."""

from itertools import product

import pytest

from torchce_cuda import _C

PACKET_BYTES = 16
BATCH = 4
DEVICES = {
    75: (40, 65536),
    80: (108, 166912),
    89: (128, 101376),
    90: (132, 232448),
    120: (170, 101376),
}  # multiprocessors, shared memory a block may ask for
# Where a team, a block or a cluster is full, and what lies between; in pieces of 16 bytes.
EDGES = [1, 32, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 100_000]
LENGTHS = sorted({edge + step for edge in EDGES for step in (-1, 0, 1)} - {0})


def plan(direction: str, rows: int, cols: int, element_bytes: int = 2, **query) -> dict:
    if "architecture" in query:
        query["multiprocessors"], query["shared_bytes"] = DEVICES[query["architecture"]]
    return _C.launch_plan(direction, rows, cols, element_bytes, **query)


def queries():
    for direction, element_bytes, architecture in product(
        ("forward", "backward", "forward_backward"), (2, 4, 8), DEVICES
    ):
        for pieces in LENGTHS:
            for cols in {pieces * PACKET_BYTES // element_bytes, pieces * 3 + 1}:
                for rows in (1, 7, 8192):
                    for neighbours, second_look in product((True, False), (True, False)):
                        query = {"classes_are_neighbours": neighbours, "second_look": second_look}
                        query["architecture"] = architecture
                        yield direction, rows, cols, element_bytes, query


def test_every_plan_can_be_launched() -> None:
    for direction, rows, cols, element_bytes, query in queries():
        chosen = plan(direction, rows, cols, element_bytes, **query)
        where = f"{direction} {rows} x {cols}, {element_bytes} bytes, {query}: {chosen['text']}"
        if direction == "backward":
            assert chosen["lanes"] in (1, 4, 8, 16, 32, 64, 128), where
        else:
            assert chosen["lanes"] in (1, 4, 8, 32, chosen["threads"]), where
        assert chosen["threads"] % 32 == 0 and 64 <= chosen["threads"] <= 256, where
        assert chosen["shared_bytes"] <= DEVICES[query["architecture"]][1], where
        assert chosen["cluster"] in (1, 2, 4, 8), where
        assert chosen["cluster"] == 1 or query["architecture"] >= 90, where
        assert chosen["blocks"] % chosen["cluster"] == 0 and chosen["blocks"] > 0, where


def test_every_row_and_class_is_covered() -> None:
    for direction, rows, cols, element_bytes, query in queries():
        chosen = plan(direction, rows, cols, element_bytes, **query)
        where = f"{direction} {rows} x {cols}, {element_bytes} bytes, {query}: {chosen['text']}"
        per_packet = PACKET_BYTES // element_bytes
        pieces = -(-cols // per_packet)
        packets = -(-(cols + per_packet - 1) // per_packet)  # of a row that begins anywhere
        teams = chosen["blocks"] * chosen["threads"] // (chosen["lanes"] * chosen["cluster"])
        if chosen["text"].startswith("resident"):
            assert teams >= rows, where
            assert chosen["slots"] * chosen["lanes"] * chosen["cluster"] >= packets, where
            continue
        # the last segment of a backward pass takes the packet that pieces leave over
        assert chosen["segments"] * chosen["segment_packets"] >= pieces, where
        per_row = chosen["segments"] if direction == "backward" or chosen["split"] else 1
        assert teams >= rows * per_row, where
        # a segment is a whole number of a team's steps
        assert chosen["segment_packets"] % (BATCH * chosen["lanes"]) == 0, where


def test_sums_do_not_depend_on_the_number_of_rows() -> None:
    """Nor on where rows lie: the query does not even say. Only `split` may follow the rows, and it
    computes and merges the same segments."""
    for direction, _, cols, element_bytes, query in queries():
        if direction == "backward":
            continue
        few, many = (plan(direction, rows, cols, element_bytes, **query) for rows in (1, 100_000))
        for key in ("lanes", "threads", "cluster", "slots", "segments", "segment_packets"):
            assert few[key] == many[key], (direction, cols, query, few["text"], many["text"])


@pytest.mark.parametrize(
    ("direction", "cols", "element_bytes", "query", "expected"),
    [
        ("forward", 10, 4, {}, "resident lanes=4"),
        ("forward", 256, 2, {}, "resident lanes=4"),
        ("forward", 512, 2, {}, "resident lanes=4"),
        ("forward", 1000, 2, {}, "resident lanes=8"),
        ("forward", 1024, 2, {}, "resident lanes=8"),
        ("forward", 1025, 2, {}, "resident lanes=32"),
        ("forward", 1000, 4, {}, "resident lanes=32 threads=128 cluster=1 slots=8"),
        ("forward", 4096, 2, {}, "resident lanes=32 threads=128 cluster=1 slots=20"),
        ("forward", 4097, 2, {}, "streaming lanes=64 threads=64"),
        ("forward", 32000, 2, {}, "streaming lanes=128 threads=128"),
        ("forward", 32000, 4, {}, "streaming lanes=64 threads=64"),
        ("forward", 65536, 2, {}, "streaming lanes=256"),
        ("forward", 32000, 2, {"architecture": 75}, "streaming lanes=128"),
        ("forward", 128256, 2, {"architecture": 89}, "streaming lanes=128"),
        ("forward", 128256, 2, {"architecture": 80}, "streaming lanes=256"),
        ("forward", 128256, 2, {}, "streaming lanes=256"),
        ("forward", 128256, 2, {"second_look": True}, "resident lanes=256 threads=256 cluster=4"),
        ("forward_backward", 4097, 2, {}, "resident lanes=64 threads=64 cluster=1 slots=12"),
        ("forward_backward", 50257, 2, {}, "resident lanes=224 threads=224 cluster=2"),
        ("forward_backward", 32768, 2, {}, "resident lanes=256 threads=256 cluster=1"),
        ("forward_backward", 32769, 2, {}, "resident lanes=160 threads=160 cluster=2"),
        ("forward_backward", 128256, 2, {}, "resident lanes=256 threads=256 cluster=4"),
        ("forward_backward", 262144, 2, {}, "resident lanes=256 threads=256 cluster=8"),
        ("forward_backward", 131072, 4, {}, "resident lanes=256 threads=256 cluster=8"),
        ("forward_backward", 800_000, 2, {}, "resident lanes=256 threads=256 cluster=8"),
        ("forward_backward", 400_000, 4, {}, "resident lanes=256 threads=256 cluster=8"),
        ("forward_backward", 2_000_000, 2, {}, "streaming lanes=256"),
        ("forward_backward", 140 * 512, 2, {"architecture": 80}, "resident lanes=256"),
        ("forward_backward", 54 * 512, 2, {"architecture": 75}, "resident lanes=224"),
        ("forward_backward", 128256, 2, {"architecture": 80}, "streaming lanes=256"),
        ("forward_backward", 21, 4, {"classes_are_neighbours": False}, "streaming lanes=1"),
        ("backward", 10, 4, {}, "backward lanes=4"),
        ("backward", 2048, 2, {}, "backward lanes=16"),
        ("backward", 4096, 2, {}, "backward lanes=32"),
        (
            "backward",
            8192,
            2,
            {},
            "backward lanes=64 threads=128 cluster=1 slots=12 segments=1x1024",
        ),
        ("backward", 128256, 2, {}, "backward lanes=128"),
        ("backward", 21, 4, {"classes_are_neighbours": False}, "backward lanes=1"),
    ],
)
def test_strategies(
    direction: str, cols: int, element_bytes: int, query: dict, expected: str
) -> None:
    assert plan(direction, 8192, cols, element_bytes, **query)["text"].startswith(expected)


def test_few_rows_are_split() -> None:
    assert plan("forward", 8, 128256)["split"]
    assert plan("forward", 8, 128256)["blocks"] == 8 * plan("forward", 8, 128256)["segments"]
    assert not plan("forward", 8192, 128256)["split"]
    assert not plan("forward", 8, 128256, second_look=True)["split"]
    assert not plan("forward", 8, 2_000_000, second_look=True)["split"]
    assert plan("forward_backward", 8, 3_000_000)["split"]
    assert plan("forward_backward", 8, 128256, architecture=80)["split"]
    assert not plan("forward_backward", 8192, 128256, architecture=80)["split"]
    assert not plan("forward_backward", 8, 128256)["split"]
    assert plan("forward", 64, 50257, classes_are_neighbours=False)["split"]
