from __future__ import annotations

import json
import logging
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ciuic_dist.config import DataConfig
from ciuic_dist.data import Batches, Corpus, DataError, accumulation, load, sources
from ciuic_dist.data.corpus import held_out_start
from ciuic_dist.data.tokenize import Bytes, HuggingFace, pack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor


def packed(path: Path, field: str = "text") -> bytes:
    tokens, _ = pack(sources.read(str(path), field), Bytes())
    return bytes(tokens.tolist())


def load_text(path: Path | None, sequence_length: int = 8, fraction: float = 0.25, tokenizer: str = "bytes") -> Corpus:
    config = DataConfig(
        path=None if path is None else str(path),
        tokenizer=tokenizer,
        sequence_length=sequence_length,
        validation_fraction=fraction,
    )
    return load(config, seed=3)


def every(batches: Batches) -> list[bytes]:
    return sorted(bytes(batches.sample(n).tolist()) for n in range(len(batches)))


# --- files ---------------------------------------------------------------------------------------


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffna\u00efve\r\nend".encode())
    assert packed(path) == "na\u00efve\r\nend".encode() + b"\0"


def test_a_large_text_file_comes_through_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.log"
    content = "".join(f"line {n} \u20ac\n" for n in range(200_000)).encode()
    assert len(content) > 2 << 20
    path.write_bytes(content)
    assert packed(path) == content + b"\0"


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "inner.md").write_text("two")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n')
    (tmp_path / "a.py").write_text("one")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".hidden").write_text("hidden")
    assert packed(tmp_path) == b"one\0two\0three\0"


def test_a_folder_leaves_out_binary_files_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        (tmp_path / f"image{number}.png").write_bytes(b"\x89PNG\0\xff")
    (tmp_path / "notes").write_text("text")
    with caplog.at_level(logging.WARNING):
        assert packed(tmp_path) == b"text\0"
    (said,) = caplog.messages
    assert said.startswith("4 of the files in ")
    assert said.endswith(": image0.png, image1.png, image2.png, ...")


def test_json_lines_give_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"body": "one\\n"}\n\n{"body": "", "x": 1}\n{"body": "\\u00e9"}', encoding="utf-8")
    assert packed(path, "body") == "one\n\0\u00e9\0".encode()


def test_parquet_gives_a_document_a_row(tmp_path: Path) -> None:
    rows = [f"row {n}" for n in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", {"id": [*range(3002)], "text": [*rows, None, ""]})
    assert packed(path) == b"".join(row.encode() + b"\0" for row in rows)


def write_parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("a.txt", b"", r"a\.txt holds no text.*data\.path"),
    "not UTF-8": ("a.txt", b"good\nbad \xff\n", r"a\.txt, byte 9: not UTF-8.*convert the file"),
    "unknown kind, not UTF-8": ("a.bin", b"\xfe\0", r"a\.bin, byte 0: not UTF-8"),
    "JSON lines not UTF-8": ("a.jsonl", b'{"text": "x"}\n"\xff"\n', r"a\.jsonl, line 2: not UTF-8"),
    "not JSON": ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"a\.jsonl, line 3: not JSON"),
    "not an object": ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1: a JSON object is wanted, here is a list"),
    "no field": (
        "a.jsonl",
        b'{"body": "x", "id": 1}\n',
        r"line 1: no field 'text'; it has 'body', 'id': set data\.text",
    ),
    "field not text": ("a.jsonl", b'{"text": 5}\n', r"a\.jsonl, line 1: text is wanted, here is a int"),
    "lone surrogate": ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl, line 1: .*UTF-8"),
    "not Parquet": ("a.parquet", b"PAR1 no", r"a\.parquet is not a readable Parquet file"),
    "too short": ("a.txt", b"abc", r"a\.txt: the training part has 3 tokens, fewer than one sequence of 8"),
    "validation too short": ("a.txt", b"a" * 20, r"a\.txt: the validation part has 5 tokens.*validation_fraction"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_is_one_error_that_names_the_file(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_text(tmp_path / name)


@pytest.mark.parametrize("case", ["not UTF-8", "not JSON", "not Parquet"])
def test_one_bad_file_in_a_folder_is_an_error_too(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    (tmp_path / "0.txt").write_text("good " * 100)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_text(tmp_path)


@pytest.mark.parametrize("column", ["id", "missing"])
def test_a_wrong_parquet_column_is_an_error(tmp_path: Path, column: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"id": [1], "body": ["x"]})
    message = {
        "id": r"a\.parquet, column 'id', row 1: text is wanted, here is a int",
        "missing": r"a\.parquet has no column 'missing'; it has 'id', 'body': set data\.text_field",
    }[column]
    with pytest.raises(DataError, match=message):
        packed(path, column)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no text"):
        load_text(tmp_path)


def test_a_missing_or_empty_path_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        sources.read(str(tmp_path / "nowhere"), "text")
    with pytest.raises(DataError, match=r"data\.path is empty"):
        sources.read("", "text")


# --- the standard library ------------------------------------------------------------------------


def test_the_standard_library_is_there_without_a_download() -> None:
    first, second = load_text(None, 128, 0.05), load_text(None, 128, 0.05)
    assert first.vocab_size == 256
    assert len(first.train) * 128 > 2_000_000
    assert 0.04 < len(first.validation) / len(first.train) < 0.11
    assert all(torch.equal(first.train.sample(n), second.train.sample(n)) for n in range(20))
    assert all(torch.equal(first.validation.sample(n), second.validation.sample(n)) for n in range(20))


def test_the_standard_library_is_readable_text_within_its_limit() -> None:
    tokens, ends = pack(sources.read(None, "text"), Bytes())
    text = bytes(tokens.tolist()).decode()
    assert len(tokens) <= 33 << 20
    assert len(ends) > 200
    assert "def getsourcefile(object):" in text  # inspect.py
    assert "Copyright the Hypothesis Authors" not in text  # an installed package


# --- tokenizers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "one": 2, "two": 3, "last": 900}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def test_a_hugging_face_tokenizer_parts_documents_by_its_end_token(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two one")
    (tmp_path / "b.txt").write_text("last strange")
    tokens, ends = pack(sources.read(str(tmp_path), "text"), HuggingFace(str(tokenizer_folder)))
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == [2, 3, 2, 1, 900, 0, 1]
    assert list(ends) == [4, 7]


def test_the_vocabulary_covers_the_largest_id(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two last " * 40)
    corpus = load_text(tmp_path, tokenizer=str(tokenizer_folder))
    assert corpus.vocab_size == 901
    assert set(corpus.train.sample(0).tolist()) == {2, 3, 900}


def test_an_unknown_tokenizer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"no tokenizer .*nowhere.*data\.tokenizer is 'bytes'"):
        load_text(tmp_path / "a.txt", tokenizer=str(tmp_path / "nowhere"))


def test_a_broken_tokenizer_is_an_error(tokenizer_folder: Path, tmp_path: Path) -> None:
    config = (tokenizer_folder / "tokenizer_config.json").read_text()
    (tmp_path / "tokenizer_config.json").write_text(config)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(DataError, match="no tokenizer"):
        HuggingFace(str(tmp_path))


# --- the held-out part ---------------------------------------------------------------------------


def test_whole_documents_are_held_out(tmp_path: Path) -> None:
    for n in range(10):
        (tmp_path / f"{n}.txt").write_text(str(n) * 15)  # 16 tokens with the end
    corpus = load_text(tmp_path, sequence_length=16, fraction=0.2)
    assert every(corpus.validation) == [b"8" * 15 + b"\0", b"9" * 15 + b"\0"]
    assert every(corpus.train) == [str(n).encode() * 15 + b"\0" for n in range(8)]


def test_a_single_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(1, 100)))
    corpus = load_text(path, sequence_length=5, fraction=0.2)
    assert every(corpus.validation) == [bytes(range(n, n + 5)) for n in (81, 86, 91)] + [bytes([96, 97, 98, 99, 0])]
    assert len(corpus.train) == 16


@given(st.lists(st.integers(1, 1000), min_size=1), st.floats(0.01, 0.99))
def test_the_held_out_part_is_near_its_fraction(lengths: list[int], fraction: float) -> None:
    ends = np.cumsum(lengths).tolist()
    held_out = ends[-1] - held_out_start(ends, fraction)
    assert fraction * ends[-1] - 0.5 <= held_out <= max(2 * fraction * ends[-1], fraction * ends[-1] + 0.5)


def test_the_seed_orders_training_but_not_validation(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(range(1, 120)))
    config = DataConfig(path=str(path), sequence_length=2, validation_fraction=0.5)
    one, two = load(config, seed=1), load(config, seed=2)
    assert first_bytes(one.train) != first_bytes(two.train)
    assert first_bytes(one.validation) == first_bytes(two.validation)


def first_bytes(batches: Batches) -> list[int]:
    return [int(batches.sample(n)[0]) for n in range(len(batches))]


# --- batches -------------------------------------------------------------------------------------


def numbered(count: int, sequence_length: int = 4, *, seed: int = 0, shuffle: bool = True) -> Batches:
    """Sequence n holds the numbers from n * sequence_length on."""
    tokens = torch.arange(count * sequence_length + sequence_length - 1, dtype=torch.int32)
    return Batches(tokens, sequence_length, seed, shuffle)


def numbers(rows: Tensor) -> list[int]:
    """Which sequences these are; each must be whole."""
    starts = rows[..., 0]
    assert torch.equal(rows, starts[..., None] + torch.arange(rows.shape[-1]))
    sequences: list[int] = (starts // rows.shape[-1]).flatten().tolist()
    return sequences


def global_batch_of(batches: Batches, counter: int, global_batch: int, world: int, micro: int) -> Iterator[list[int]]:
    """The sequences of each micro-batch, in the order of the global batch."""
    ranks = [
        batches.micro_batches(counter, global_batch=global_batch, micro_batch=micro, rank=rank, world=world)
        for rank in range(world)
    ]
    for same_time in zip(*ranks, strict=True):
        for batch in same_time:
            assert batch["input_ids"].shape == (micro, 4)
            assert batch["input_ids"].dtype == torch.int64
            assert batch["labels"] is batch["input_ids"]
            yield numbers(batch["input_ids"])


def divisions(global_batch: int) -> list[tuple[int, int]]:
    worlds = [world for world in range(1, global_batch + 1) if global_batch % world == 0]
    return [
        (world, micro)
        for world in worlds
        for micro in range(1, global_batch + 1)
        if global_batch % (world * micro) == 0
    ]


@settings(max_examples=50)
@given(count=st.integers(1, 40), global_batch=st.integers(1, 24), step=st.integers(0, 30), seed=st.integers(0, 2**63))
def test_any_division_of_a_global_batch_has_the_same_samples(
    count: int, global_batch: int, step: int, seed: int
) -> None:
    batches = numbered(count, seed=seed)
    counter = step * global_batch
    expected = [numbers(batches.sample(counter + n))[0] for n in range(global_batch)]
    for world, micro in divisions(global_batch):
        seen = [number for part in global_batch_of(batches, counter, global_batch, world, micro) for number in part]
        assert seen == expected


@settings(max_examples=50)
@given(count=st.integers(1, 40), global_batch=st.integers(1, 24), seed=st.integers(0, 2**63))
def test_an_epoch_has_every_sequence_once(count: int, global_batch: int, seed: int) -> None:
    batches = numbered(count, seed=seed)
    stream: list[int] = []
    while len(stream) < 3 * count:
        stream += [n for part in global_batch_of(batches, len(stream), global_batch, 1, global_batch) for n in part]
    for epoch in range(3):
        assert Counter(stream[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def order(batches: Batches, counters: Sequence[int]) -> list[int]:
    return [numbers(batches.sample(counter))[0] for counter in counters]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    batches = numbered(50, seed=1)
    orders = [order(batches, range(50)), order(batches, range(50, 100)), order(numbered(50, seed=2), range(50))]
    assert len({tuple(one) for one in [*orders, list(range(50))]}) == 4


def test_a_sample_depends_on_its_counter_alone() -> None:
    batches = numbered(10, seed=1)
    forwards = order(batches, range(35))
    assert order(batches, range(34, -1, -1)) == forwards[::-1]
    assert order(numbered(10, seed=1), [31]) == forwards[31:32]


def test_without_shuffling_sequences_come_in_order() -> None:
    assert order(numbered(5, shuffle=False), range(12)) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_too_few_tokens_or_a_negative_seed_are_errors() -> None:
    with pytest.raises(ValueError, match="3 tokens are fewer than one sequence of 4"):
        Batches(torch.zeros(3, dtype=torch.uint8), 4, 0)
    with pytest.raises(ValueError, match="seed is -1; give 0 or more"):
        numbered(1, seed=-1)


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world", "advice"),
    [
        (6, 2, 2, r"train\.global_batch to 4 or 8, or train\.micro_batch to one of 1, 3$"),
        (5, 1, 2, r"train\.global_batch to 4 or 6$"),
        (2, 4, 1, r"train\.global_batch to 4, or train\.micro_batch to one of 1, 2$"),
        (4, 0, 2, "each must be 1 or more"),
    ],
)
def test_an_uneven_global_batch_is_an_error_with_good_values(
    global_batch: int, micro_batch: int, world: int, advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        accumulation(global_batch=global_batch, micro_batch=micro_batch, world=world)
    with pytest.raises(ValueError, match=advice):
        numbered(9).micro_batches(0, global_batch=global_batch, micro_batch=micro_batch, rank=0, world=world)


def test_accumulation_counts_the_micro_batches_of_a_rank() -> None:
    assert accumulation(global_batch=24, micro_batch=2, world=3) == 4
