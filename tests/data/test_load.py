"""Real data: what is read, the fixed split, and the errors."""

import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn import datasets

from gradkin import data
from gradkin.data import prepared

BUNDLED = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
TFDS_DATA_DIR = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def needs_tfds(name):
    """Skip, saying why, where the set is not prepared."""
    missing = name not in prepared.prepared_names(TFDS_DATA_DIR)
    reason = f"TFDS has no {name} prepared in TFDS_DATA_DIR"
    return [pytest.mark.tfds, pytest.mark.skipif(missing, reason=reason)]


@pytest.mark.parametrize("name", BUNDLED)
def test_train_and_test_partition_the_whole(name):
    whole, train, test = (data.load(name, split) for split in ("all", "train", "test"))
    assert len(train) + len(test) == len(whole)
    assert whole.licence
    for key in whole:
        both = np.concatenate([train[key], test[key]]).reshape(len(whole), -1)
        rows = whole[key].reshape(len(whole), -1)
        np.testing.assert_array_equal(
            both[np.lexsort(both.T)], rows[np.lexsort(rows.T)], err_msg=f"{name} {key}"
        )


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "iris", "wine"])
def test_the_split_keeps_the_share_of_every_class(name):
    whole, test = data.load(name, "all"), data.load(name, "test")
    expected = np.round(0.2 * np.bincount(whole["label"])).astype(int)
    np.testing.assert_array_equal(np.bincount(test["label"]), expected)
    assert whole.num_classes == len(expected)


def test_the_split_is_fixed_and_shuffled():
    train = data.load("iris")
    assert train["label"][:12].tolist() == [1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0]
    np.testing.assert_array_equal(train["features"], data.load("iris")["features"])


@pytest.mark.parametrize("name", BUNDLED)
def test_values_are_those_of_scikit_learn(name):
    bunch = getattr(datasets, f"load_{name}")()
    whole = data.load(name, "all")
    inputs = whole["image" if name == "digits" else "features"]
    np.testing.assert_array_equal(
        inputs.reshape(len(whole), -1), bunch.data.astype(np.float32).astype(inputs.dtype)
    )
    target = whole["label" if "label" in whole else "target"]
    np.testing.assert_array_equal(target, bunch.target.astype(target.dtype))


def test_changing_the_arrays_does_not_change_the_next_load():
    first = data.load("wine", "all")
    first["label"][:] = 7
    assert data.load("wine", "all")["label"].max() == 2


def test_a_dataset_is_a_mapping_and_a_pytree():
    iris = data.load("iris")
    assert dict(iris).keys() == {"features", "label"}
    assert "label" in iris
    assert "image" not in iris
    doubled = jax.tree.map(lambda leaf: 2 * leaf, iris)
    assert doubled.name == "iris"
    total = jax.jit(lambda d: d["features"].sum())(iris)
    assert float(total) == pytest.approx(float(iris["features"].sum()), rel=1e-6)


def test_images_are_scaled_by_their_range():
    digits = data.load("digits")
    image = data.images(digits)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(16 * image, digits["image"])
    assert data.images(digits, flatten=True).shape == (len(digits), 64)


def test_images_of_a_table_are_refused():
    with pytest.raises(ValueError, match="Expected a data set with images.*'iris'.*features"):
        data.images(data.load("iris"))


def test_an_absent_array_is_named():
    with pytest.raises(KeyError, match="iris has .*features.*not 'image'"):
        data.load("iris")["image"]


# Files


def test_npz_file_with_splits(tmp_path):
    file = tmp_path / "own.npz"
    np.savez(
        file, x_train=np.zeros((3, 2)), label_train=np.array([0, 4, 2]), x_test=np.ones((1, 2))
    )
    train, test = data.load(file), data.load(str(file), "test")
    assert (train["x"].shape, train["x"].dtype) == ((3, 2), np.float32)
    assert train["label"].dtype == np.int32
    assert train.num_classes == 5
    assert (list(test), test.num_classes) == (["x"], None)
    assert "not stated" in test.licence


def test_npz_file_without_splits(tmp_path):
    file = tmp_path / "own.npz"
    np.savez(file, x=np.arange(4))
    assert len(data.load(file, "all")) == len(data.load(file)) == 4
    with pytest.raises(ValueError, match="has one split, got split='test'"):
        data.load(file, "test")


def test_folder_of_npz(tmp_path):
    np.savez(tmp_path / "train.npz", image=np.zeros((2, 4, 4, 3), np.uint8))
    assert data.images(data.load(tmp_path)).shape == (2, 4, 4, 3)
    with pytest.raises(
        FileNotFoundError, match=r"no .*test\.npz; splits in that folder: \['train'\]"
    ):
        data.load(tmp_path, "test")


def test_bad_files_are_refused(tmp_path):
    file = tmp_path / "own.npz"
    np.savez(file, x=np.zeros(3), y=np.zeros(2))
    with pytest.raises(ValueError, match="share their leading axis.*'x': 3.*'y': 2"):
        data.load(file)
    np.savez(file, x_train=np.zeros(3), y_test=np.zeros(2))
    with pytest.raises(ValueError, match=r"arrays named '\.\.\._valid'"):
        data.load(file, "valid")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        data.load(tmp_path / "absent.npz")


def test_integers_that_do_not_fit_keep_their_width(tmp_path):
    np.savez(tmp_path / "own.npz", big=np.array([2**40]), small=np.array([2**20]))
    own = data.load(tmp_path / "own.npz")
    assert (own["big"].dtype, own["small"].dtype) == (np.int64, np.int32)


# Errors


def test_unknown_name_lists_the_names(tmp_path):
    with pytest.raises(ValueError, match=r"got name='mnits'.*'digits'.*\(scikit-learn\)"):
        data.load("mnits", data_dir=tmp_path)


def test_unknown_split_lists_the_splits():
    with pytest.raises(ValueError, match=r"one of \('train', 'test', 'all'\) for wine.*'valid'"):
        data.load("wine", "valid")


@pytest.mark.parametrize("name", ["cifar10", "glue/sst2"])
def test_unprepared_set_says_where_and_how(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        data.load(name)
    assert str(tmp_path / name) in str(error.value)
    assert f"tfds build {name} --file_format=array_record" in str(error.value)


@pytest.mark.parametrize(
    ("module", "name", "package"),
    [("sklearn", "iris", "scikit-learn"), ("tensorflow_datasets", "mnist", "tensorflow-datasets")],
)
def test_missing_extra_is_named(module, name, package, monkeypatch):
    from gradkin.data import bundled

    bundled.read.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'gradkin\[data\]'"):
        data.load(name)


# TensorFlow Datasets


@pytest.mark.parametrize(
    ("name", "split", "size", "mean"),
    [
        pytest.param("mnist", "test", 10_000, 33.79, marks=needs_tfds("mnist")),
        pytest.param("fashion_mnist", "test", 10_000, 73.15, marks=needs_tfds("fashion_mnist")),
    ],
)
def test_prepared_set(name, split, size, mean):
    loaded = data.load(name, split, data_dir=TFDS_DATA_DIR)
    assert loaded["image"].shape == (size, 28, 28, 1)
    assert loaded["image"].dtype == np.uint8
    assert loaded["image"].mean() == pytest.approx(mean, abs=0.01)
    assert loaded["label"].dtype == np.int32
    assert set(loaded["label"].tolist()) == set(range(10))
    assert (loaded.num_classes, loaded.pixel_max) == (10, 255)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", [pytest.param("mnist", marks=needs_tfds("mnist"))])
def test_prepared_set_version_slice_and_bad_split(name):
    part = data.load(f"{name}:3.0.1", "test[:7]", data_dir=TFDS_DATA_DIR)
    assert len(part) == 7
    with pytest.raises(ValueError, match=r"one of \['test', 'train', 'all'\] for mnist"):
        data.load(name, "valid", data_dir=TFDS_DATA_DIR)


def test_a_set_in_another_format_says_how_to_prepare_it(tmp_path):
    folder = tmp_path / "mnist" / "9.0.0"
    write_prepared(folder, file_format="tfrecord")
    with pytest.raises(FileNotFoundError, match="not stored as array_record.*tfds build mnist"):
        data.load("mnist", data_dir=tmp_path)


def test_the_newest_version_is_read_and_configurations_are_asked_for(tmp_path):
    for version in ("2.0.0", "10.0.0"):
        write_prepared(tmp_path / "own" / version)
        write_prepared(tmp_path / "many" / "small" / version)
    assert prepared.version_folder("own", tmp_path, set()).name == "10.0.0"
    assert prepared.version_folder("own:2.0.0", tmp_path, set()).name == "2.0.0"
    assert prepared.version_folder("many/small", tmp_path, set()).name == "10.0.0"
    with pytest.raises(ValueError, match=r"configurations of many: many/\['small'\]"):
        prepared.version_folder("many", tmp_path, set())


def test_nested_text_and_ragged_columns():
    rows = [{"a": {"b": 1}, "text": b"one\0", "r": [1]}, {"a": {"b": 2}, "text": b"", "r": [1, 2]}]
    columns = prepared.stack(rows)
    assert columns["a/b"].tolist() == [1, 2]
    assert columns["text"].tolist() == [b"one\0", b""]
    assert columns["r"].tolist() == [[1], [1, 2]]


def write_prepared(folder, file_format="array_record"):
    """The two descriptions TFDS keeps beside the shards of a prepared set."""
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(
        f'{{"name": "{folder.parent.name}", "version": "{folder.name}", '
        f'"fileFormat": "{file_format}", "splits": [{{"name": "train", "numBytes": "1", '
        '"shardLengths": ["1"], "filepathTemplate": '
        '"{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}]}'
    )
    (folder / "features.json").write_text(
        '{"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", '
        '"featuresDict": {"features": {"x": {"pythonClassName": '
        '"tensorflow_datasets.core.features.scalar.Scalar", '
        '"tensor": {"shape": {}, "dtype": "int64", "encoding": "none"}}}}}'
    )
