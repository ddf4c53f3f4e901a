"""Writing and reading a store: what is committed, what is missing, what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from gradkin import store
from gradkin.store import manifest, shards
from gradkin.store.manifest import Entry

DIM, SIZE = 5, 8


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(45, DIM)).astype(np.float32)


@pytest.fixture
def empty(tmp_path):
    return store.create_store(tmp_path / "store", dim=DIM, shard_size=SIZE)


def crc32c(data: bytes) -> int:
    """By its definition: the remainder modulo the Castagnoli polynomial, bits reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_rows_come_back_across_shards_and_parts(empty, features):
    for start, stop in ((0, 3), (3, 20), (20, 45)):
        empty.write(features[start:stop], start=start, checkpoint="a")
    assert empty.checkpoints == ("a",)
    assert empty.num_examples(checkpoint="a") == 45
    for start, stop in ((0, 45), (2, 4), (7, 9), (44, 45), (16, 24)):
        read = empty.read(start, stop, checkpoint="a")
        np.testing.assert_array_equal(read, features[start:stop])
    assert empty.verify() == 45


def test_fill_computes_what_is_missing_and_appends(empty, features):
    asked = []

    def features_of(start, stop):
        asked.append((start, stop))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return jnp.asarray(features[start:stop])

    with pytest.raises(KeyboardInterrupt):
        empty.fill(features_of, num_examples=28, checkpoint="a")
    assert asked == [(0, 8), (8, 16), (16, 24)]
    assert empty.missing(28, checkpoint="a") == [(16, 24), (24, 28)]
    empty.fill(features_of, num_examples=28, checkpoint="a")
    assert asked[3:] == [(16, 24), (24, 28)]
    empty.fill(features_of, num_examples=45, checkpoint="a", progress=True)
    assert asked[5:] == [(28, 32), (32, 40), (40, 45)]
    np.testing.assert_array_equal(empty.read(0, 45, checkpoint="a"), features)
    assert empty.missing(45, checkpoint="a") == []
    assert store.open_store(empty.folder) == empty


def test_processes_take_shards_in_turn(empty, features):
    shares = [empty.missing(45, checkpoint="a", process_index=i, num_processes=4) for i in range(4)]
    assert shares[1] == [(8, 16), (40, 45)]
    assert sorted(sum(shares, [])) == empty.missing(45, checkpoint="a")
    for index in (2, 0, 3):
        empty.fill(
            lambda start, stop: features[start:stop],
            num_examples=45,
            checkpoint="a",
            process_index=index,
            num_processes=4,
        )
    assert empty.missing(45, checkpoint="a") == shares[1]
    with pytest.raises(ValueError, match="those of 8 to 15 are missing"):
        empty.num_examples(checkpoint="a")
    with pytest.raises(ValueError, match=r"got \(7, 17\), of which 2 are there"):
        empty.read(7, 17, checkpoint="a")


def test_a_shard_is_a_zarr3_array_with_its_crc(empty, features):
    empty.write(features[:8], start=0, checkpoint="a")
    ((entry,),) = manifest.listing(empty.folder, empty.spec, "a").values()
    folder = empty.folder / entry.folder / "features"
    assert sorted(path.name for path in folder.iterdir()) == ["c.0.0", "zarr.json"]
    description = json.loads((folder / "zarr.json").read_text())
    assert description["zarr_format"] == 3
    assert description["shape"] == [8, DIM]
    assert [codec["name"] for codec in description["codecs"]] == ["bytes", "crc32c"]
    stored = (folder / "c.0.0").read_bytes()
    assert stored[:-4] == features[:8].tobytes()
    assert int.from_bytes(stored[-4:], "little") == crc32c(stored[:-4])
    assert int(entry.checksums["features"], 16) == crc32c(stored[:-4])


def test_of_two_writers_of_the_same_rows_one_wins(empty, features):
    entry = Entry(0, 0, 0, 8, "", {})
    scales = np.ones((8, 2), np.float32)
    first = {"features": features[:8], "scales": scales}
    second = {"features": features[8:16], "scales": scales}
    shards.commit(empty.folder, empty.spec, "a", entry, first)
    with pytest.raises(FileExistsError, match="from example 0 of checkpoint a .* another process"):
        shards.commit(empty.folder, empty.spec, "a", entry, second)
    np.testing.assert_array_equal(empty.read(0, 8, checkpoint="a"), features[:8])
    (kept,) = (empty.folder / "shards" / "a" / "00000000").iterdir()
    assert kept.name.startswith("0000-")


def test_a_commit_that_fails_after_its_entry_was_made_keeps_its_files(empty, features, monkeypatch):
    def broken(source, path):
        link(source, path)
        raise OSError("the disk is gone")

    link = shards.link_exclusively
    monkeypatch.setattr(shards, "link_exclusively", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        empty.write(features[:8], start=0, checkpoint="a")
    np.testing.assert_array_equal(empty.read(0, 8, checkpoint="a"), features[:8])


def test_a_failed_write_leaves_nothing_behind(empty, features, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shards, "sync", full)
        with pytest.raises(OSError, match="No space left"):
            empty.write(features[:8], start=0, checkpoint="a")
    assert not list((empty.folder / "shards" / "a" / "00000000").iterdir())
    assert empty.checkpoints == ()
    empty.write(features[:8], start=0, checkpoint="a")
    assert empty.num_examples(checkpoint="a") == 8


def test_a_store_is_made_once(empty):
    again = store.create_store(empty.folder, dim=DIM, shard_size=SIZE)
    assert again == empty
    for field, value in (("dim", 6), ("dtype", "int8"), ("shard_size", 9), ("sketch", "other")):
        options = {"dim": DIM, "shard_size": SIZE, field: value}
        with pytest.raises(ValueError, match=f"{field}=.* of the store .* got {field}={value!r}"):
            store.create_store(empty.folder, **options)


def test_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no store\.json"):
        store.open_store(tmp_path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dim": 0}, "dim > 0"),
        ({"dim": 3, "dtype": "float16"}, "dtype to be one of"),
        ({"dim": 3, "shard_size": 0}, "shard_size > 0"),
    ],
)
def test_bad_properties(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        store.create_store(tmp_path, **options)


def test_bad_writes(empty, features):
    empty.write(features[:12], start=0, checkpoint="a")
    for rows, start, name, match in (
        (features[:2], 4, "a", "start=4: checkpoint a has those of 0 to 7"),
        (features[:2], 11, "a", "start=11: checkpoint a has those of 8 to 11"),
        (features[:2], 13, "a", "start=13: those from 12 on are not there yet"),
        (features[:2], 17, "a", "start=17: those from 16 on"),
        (features[:2], -1, "a", "start >= 0"),
        (features[:2], 12, "a/b", "checkpoint's name"),
        (features[:2], 12, "..", "checkpoint's name"),
        (features[:0], 12, "a", "n >= 1"),
        (features[:2, :3], 12, "a", r"shape \[n, 5\]"),
        (np.full((2, DIM), np.nan, np.float32), 12, "a", "of example 12"),
    ):
        with pytest.raises(ValueError, match=match):
            empty.write(rows, start=start, checkpoint=name)
    with pytest.raises(TypeError, match="floating dtype"):
        empty.write(np.zeros((2, DIM), np.int8), start=12, checkpoint="a")
    with pytest.raises(ValueError, match="to give 4 rows, got shape"):
        empty.fill(lambda start, stop: features[:1], num_examples=45, checkpoint="a")
    with pytest.raises(ValueError, match="both process_index and num_processes"):
        empty.fill(lambda a, b: features[a:b], num_examples=3, checkpoint="a", process_index=0)
    with pytest.raises(ValueError, match="num_examples > 0"):
        empty.missing(0, checkpoint="a")
    with pytest.raises(ValueError, match=r"process_index in \[0, 2\), got 2"):
        empty.missing(9, checkpoint="a", process_index=2, num_processes=2)
    np.testing.assert_array_equal(empty.read(0, 12, checkpoint="a"), features[:12])


def test_bad_reads(empty, features):
    empty.write(features[:12], start=0, checkpoint="a")
    with pytest.raises(ValueError, match=r"one of the checkpoints \('a',\) .* got 'b'"):
        empty.read(0, 1, checkpoint="b")
    with pytest.raises(ValueError, match="one of the checkpoints"):
        empty.num_examples(checkpoint="b")
    for start, stop in ((0, 13), (3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="a range of rows of checkpoint a"):
            empty.read(start, stop, checkpoint="a")
