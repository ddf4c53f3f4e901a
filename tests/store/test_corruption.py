"""Damage of any file gives a named error or changes nothing: never other numbers."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from gradkin import store
from gradkin.store import CorruptShardError

DIM, SIZE, TOTAL = 4, 8, 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    made = store.create_store(folder, dim=DIM, shard_size=SIZE, dtype="int8")
    features = np.random.default_rng(0).normal(size=(TOTAL, DIM)).astype(np.float32)
    made.write(features[:5], start=0, checkpoint="a")
    made.write(features[5:], start=5, checkpoint="a")
    return made


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def error_of(folder: Path, wanted: np.ndarray) -> Exception | None:
    """What reading gives; where it gives rows, they are those that were written."""
    try:
        read = store.open_store(folder).read(0, TOTAL, checkpoint="a")
    except (ValueError, FileNotFoundError) as error:
        return error
    np.testing.assert_array_equal(read, wanted)
    return None


def flip(position):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(position * (len(data) - 1))] ^= 0x10
        path.write_bytes(bytes(data))

    return damage


DAMAGES = {
    "first byte": flip(0),
    "some byte": flip(0.37),
    "last byte": flip(1),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_or_harmless(whole, tmp_path, damage):
    wanted, named = whole.read(0, TOTAL, checkpoint="a"), 0
    for number, name in enumerate(files(whole.folder)):
        copy = tmp_path / str(number)
        shutil.copytree(whole.folder, copy)
        DAMAGES[damage](copy / name)
        error = error_of(copy, wanted)
        named += error is not None
        if error is None:
            # The copy of the entry that lies with the arrays, and what zarr.json does not need.
            assert name.name in ("entry.json", "zarr.json"), name
        elif isinstance(error, CorruptShardError | FileNotFoundError):
            assert str(copy) in str(error)
        else:
            # An entry that is not there: its rows are not committed.
            assert (damage, name.parts[0]) == ("gone", "manifest")
            assert "of which" in str(error)
    assert named >= 13


def test_every_search_reads_the_checksums(whole, tmp_path):
    queries = np.ones((1, DIM), np.float32)
    shutil.copytree(whole.folder, tmp_path / "copy")
    copy = store.open_store(tmp_path / "copy")
    copy.top_k(queries, 3)
    chunks = sorted(copy.folder.glob("shards/a/*/*/features/c.0.0"))
    flip(0.5)(chunks[-1])
    flip(0.5)(chunks[0])
    with pytest.raises(CorruptShardError, match="c.0.0 is damaged"):
        copy.top_k(queries, 3)
    with pytest.raises(CorruptShardError) as info:
        copy.verify()
    assert all(str(path) in str(info.value) for path in (chunks[0], chunks[-1]))
    # Two shards exchanged: both are whole, and not what the manifest names.
    flip(0.5)(chunks[-1])
    flip(0.5)(chunks[0])
    assert copy.verify() == TOTAL
    first, second = chunks[1], chunks[2]
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes()[: len(kept)])
    with pytest.raises(CorruptShardError, match="damaged"):
        copy.read(0, TOTAL, checkpoint="a")


def test_rows_of_a_damaged_shard_are_computed_again(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "copy")
    copy, wanted = store.open_store(tmp_path / "copy"), whole.read(0, TOTAL, checkpoint="a")
    flip(0)(next(copy.folder.glob("shards/a/00000000/0001-*/scales/c.0.0")))
    with pytest.raises(CorruptShardError, match="00000000"):
        copy.verify()
    for entry in (copy.folder / "manifest" / "a").glob("00000000.*.json"):
        entry.unlink()
    assert copy.missing(TOTAL, checkpoint="a") == [(0, 8)]
    copy.fill(lambda start, stop: wanted[start:stop], num_examples=TOTAL, checkpoint="a")
    np.testing.assert_allclose(copy.read(0, TOTAL, checkpoint="a"), wanted, rtol=1e-6)


def test_a_gap_in_the_manifest_is_damage(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "copy")
    copy = store.open_store(tmp_path / "copy")
    (copy.folder / "manifest" / "a" / "00000000.0000.json").unlink()
    with pytest.raises(CorruptShardError, match=r"00000000\.0000\.json is gone"):
        copy.num_examples(checkpoint="a")
    other = copy.folder / "manifest" / "a" / "00000000.0001.json"
    other.rename(other.with_name("00000000.0000.json"))
    with pytest.raises(CorruptShardError, match="speaks of other rows"):
        copy.num_examples(checkpoint="a")
    (copy.folder / "manifest" / "a" / "notes.txt").touch()
    with pytest.raises(CorruptShardError, match="does not belong into a manifest"):
        copy.num_examples(checkpoint="a")
