"""LEAF's JSON: users become groups, and every contradiction in a file is an error that names it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.config import load_config
from securefl.errors import ConfigurationError, DataNotFound
from securefl.training import partition
from securefl.training.data import DatasetName, MalformedData, load
from securefl.training.leaf import load_leaf, read_leaf_file


def tree(sizes=(("ann", 3), ("bob", 2)), features=4, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "users": [name for name, _ in sizes],
        "num_samples": [n for _, n in sizes],
        "user_data": {
            name: {
                "x": rng.random((n, features)).round(4).tolist(),
                "y": rng.integers(0, classes, n).tolist(),
            }
            for name, n in sizes
        },
    }


@pytest.fixture
def written(tmp_path):
    """`written(tree, name)`: a file under the data folder's `set`, and the data folder."""

    def write(content, name="all.json"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    write.root = tmp_path
    return write


# ------------------------------------------------------------------ what is read


def test_a_file_is_read_user_by_user(written):
    content = tree()
    ann, bob = read_leaf_file(written(content))
    assert (ann.name, bob.name) == ("ann", "bob")
    assert np.allclose(ann.x, content["user_data"]["ann"]["x"])
    assert bob.y.tolist() == content["user_data"]["bob"]["y"]
    assert (ann.x.dtype, ann.y.dtype) == (np.float32, np.int64)
    assert "array" not in repr(ann)


def test_train_and_test_share_one_numbering_of_users_over_several_files(written):
    written(tree((("ann", 3), ("bob", 2))), "train/b.json")
    written(tree((("cyd", 4),), seed=1), "train/a.json")
    written(tree((("bob", 1), ("dan", 2)), seed=2), "test/t.json")
    train, test = load_leaf("set", written.root, classes=3)
    # files in the order of their names: cyd 0, ann 1, bob 2; dan is new in the test set
    assert train.groups.tolist() == [0] * 4 + [1] * 3 + [2] * 2
    assert test.groups.tolist() == [2, 3, 3]
    assert train.name is DatasetName.LEAF
    assert (train.input_shape, train.classes) == ((4,), 3)
    clients = partition.natural(train.groups)
    assert clients.sizes == (4, 3, 2)


def test_one_folder_of_files_is_split_by_user_and_label(written):
    written(tree((("ann", 30), ("bob", 20))))
    train, test = load_leaf("set", written.root, test_fraction=0.2)
    assert (len(train), len(test)) == (40, 10)
    assert np.bincount(test.groups).tolist() == [6, 4]
    again = load_leaf("set", written.root, test_fraction=0.2)
    assert np.array_equal(again.train.x, train.x)


def test_flat_records_take_the_shape_that_is_said(written):
    written(tree((("ann", 6), ("bob", 6)), features=16))
    train, _ = load_leaf("set", written.root, shape=(1, 4, 4))
    assert train.input_shape == (1, 4, 4)


def test_nested_records_keep_their_shape_and_single_numbers_become_one_feature(written):
    nested = {"users": ["a"], "num_samples": [2], "user_data": {}}
    nested["user_data"]["a"] = {"x": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]], "y": [0, 1]}
    (user,) = read_leaf_file(written(nested))
    assert user.x.shape == (2, 2, 2)
    nested["user_data"]["a"] = {"x": [1, 2.5] * 10, "y": [0, 1] * 10}
    nested["num_samples"] = [20]
    written(nested)
    assert load_leaf("set", written.root).train.input_shape == (1,)


def test_users_without_records_are_left_out(written):
    content = tree((("ann", 3), ("nil", 0), ("bob", 2)))
    assert [user.name for user in read_leaf_file(written(content))] == ["ann", "bob"]


def test_hierarchies_and_other_keys_are_passed_over(written):
    content = {**tree(), "hierarchies": ["x", "y"], "note": {"x": [1], "y": [2]}}
    assert len(read_leaf_file(written(content))) == 2


def test_a_user_may_be_called_x(written):
    content = tree((("x", 3), ("y", 2)))
    assert [user.name for user in read_leaf_file(written(content))] == ["x", "y"]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    features=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_what_was_written_is_what_is_read(tmp_path_factory, sizes, features, seed):
    content = tree([(f"u{i}", n) for i, n in enumerate(sizes)], features=features, seed=seed)
    path = tmp_path_factory.mktemp("leaf") / "a.json"
    path.write_text(json.dumps(content))
    for user, n in zip(read_leaf_file(path), sizes, strict=True):
        assert user.x.shape == (n, features)
        assert np.allclose(user.x, content["user_data"][user.name]["x"])
        assert user.y.tolist() == content["user_data"][user.name]["y"]


# ------------------------------------------------------------------ what is refused


def changed(**keys):
    return {**tree(), **keys}


def with_ann(**keys):
    content = tree()
    content["user_data"]["ann"].update(keys)
    return content


BROKEN = {
    "no JSON": ("{", "not the JSON"),
    "a list": ([], "expected an object"),
    "bytes": ("\x00\xff", "not the JSON"),
    "no users": ({"num_samples": [], "user_data": {}}, "users is missing"),
    "users no list": (changed(users="ann"), "users is str"),
    "a user twice": (changed(users=["ann", "ann"]), "distinct"),
    "a user that is a number": (changed(users=["ann", 2]), "distinct texts"),
    "one count missing": (changed(num_samples=[3]), "2 users but 1 num_samples"),
    "a wrong count": (changed(num_samples=[3, 3]), "'bob' has 2 x and 2 y, num_samples says 3"),
    "a count that is text": (changed(num_samples=[3, "2"]), "num_samples says '2'"),
    "a user without data": (changed(user_data={}), "name different users, 2 in all"),
    "data of a stranger": (changed(users=["ann"], num_samples=[3]), "such as 'bob'"),
    "no y": (with_ann(y=None), "'ann' must have lists x and y"),
    "fewer labels": (with_ann(y=[0, 1]), "'ann' has 3 x and 2 y"),
    "text": (with_ann(x=["to be", "or", "not"]), "texts are not supported"),
    "ragged": (with_ann(x=[[1, 2], [3], [4, 5]]), "all of one shape"),
    "true as a number": (with_ann(x=[True, False, True]), "texts are not supported"),
    "beyond float32": (with_ann(x=[[1e39] * 4] * 3), "beyond float32"),
    "huge integers": (with_ann(x=[[10**400] * 4] * 3), "numbers, all of one shape"),
    "a negative label": (with_ann(y=[0, -1, 1]), "found -1"),
    "a label of a half": (with_ann(y=[0, 0.5, 1]), r"found 0\.5"),
    "a label that is true": (with_ann(y=[0, True, 1]), "found True"),
    "NaN": (json.dumps(tree()).replace("[[", "[[NaN, ", 1), "NaN is no number"),
    "a key twice": ('{"users": [], "users": []}', "'users' stands twice"),
    "nested too deep": ("[" * 200_000, "not the JSON"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_contradiction_is_an_error_that_names_the_file(written, what):
    content, message = BROKEN[what]
    with pytest.raises(MalformedData, match=message) as caught:
        read_leaf_file(written(content))
    assert "all.json" in str(caught.value)


def test_a_count_of_true_is_no_count_of_one(written):
    with pytest.raises(MalformedData, match="num_samples says True"):
        read_leaf_file(written({**tree((("ann", 1),)), "num_samples": [True]}))


def test_a_file_larger_than_the_cap_is_refused_before_it_is_parsed(written):
    path = written(tree())
    with pytest.raises(MalformedData, match="larger than 10 bytes"):
        read_leaf_file(path, max_bytes=10)
    assert read_leaf_file(path, max_bytes=path.stat().st_size)
    with path.open("r+b") as file:
        file.truncate(1 << 42)  # sparse: four terabytes, if anybody reads them
    with pytest.raises(MalformedData, match="larger than 1000 bytes"):
        read_leaf_file(path, max_bytes=1000)


@given(cut=st.integers(0, 200))
def test_a_truncated_file_is_refused(tmp_path_factory, cut):
    text = json.dumps(tree())
    path = tmp_path_factory.mktemp("leaf") / "a.json"
    path.write_text(text[: cut % len(text)])
    with pytest.raises(MalformedData):
        read_leaf_file(path)


def test_a_user_in_two_files_of_one_part_is_refused(written):
    written(tree((("ann", 2),)), "train/a.json")
    written(tree((("ann", 2),), seed=1), "train/b.json")
    written(tree((("bob", 2),)), "test/a.json")
    with pytest.raises(MalformedData, match=r"'ann' stands in .*a.json and in b.json"):
        load_leaf("set", written.root)


def test_records_of_different_shapes_are_refused(written):
    written(tree((("ann", 2),), features=4), "train/a.json")
    written(tree((("bob", 2),), features=5), "train/b.json")
    written(tree((("cyd", 2),), features=4), "test/a.json")
    with pytest.raises(MalformedData, match=r"'bob' have shape \(5,\), others \(4,\)"):
        load_leaf("set", written.root)
    with pytest.raises(ConfigurationError, match=r"5 numbers, the shape .* wants 4"):
        load_leaf("set", written.root, shape=(1, 2, 2))
    written(tree((("bob", 2),)), "train/b.json")
    written(tree((("cyd", 2),), features=5), "test/a.json")
    with pytest.raises(MalformedData, match="of test"):
        load_leaf("set", written.root)


def test_labels_beyond_the_classes_are_refused(written):
    written(tree((("ann", 30),), classes=5))
    assert load_leaf("set", written.root).train.classes == 5
    assert load_leaf("set", written.root, classes=62).train.classes == 62
    with pytest.raises(ConfigurationError, match="largest label is 4, classes = 4"):
        load_leaf("set", written.root, classes=4)


def test_missing_folders_and_files_are_named(written, monkeypatch):
    monkeypatch.delenv("SECUREFL_DATA", raising=False)
    with pytest.raises(DataNotFound, match="SECUREFL_DATA"):
        load_leaf("set")
    with pytest.raises(DataNotFound, match="set does not exist"):
        load_leaf("set", written.root)
    written(tree(), "train/a.json")
    with pytest.raises(DataNotFound, match="set/test has no"):
        load_leaf("set", written.root)
    with pytest.raises(DataNotFound, match=r"has no file none\.json"):
        read_leaf_file(written.root / "none.json")
    written(tree((("nil", 0),)), "test/a.json")
    with pytest.raises(MalformedData, match="has no records"):
        load_leaf("set", written.root)


@pytest.mark.parametrize("path", ["../set", "/etc", "", ".", "a/../../b"])
def test_a_path_that_leaves_the_data_folder_is_refused(written, path):
    written(tree())
    with pytest.raises(ConfigurationError, match="below the data folder"):
        load_leaf(path, written.root)


def test_the_general_loader_says_where_leaf_is():
    with pytest.raises(ConfigurationError, match="load_leaf"):
        load("leaf")


# ------------------------------------------------------------------ from a configuration


CONFIG = """
schema = "securefl-train/1"
[data]
name = "leaf"
path = "set"
shape = [1, 12, 12]
classes = 3
[partition]
kind = "natural"
clients = 4
[model]
name = "scattering_linear"
[training]
rounds = 2
local_epochs = 1
[sweep]
modes = ["none"]
"""


def striped(label, rng):
    """Stripes along rows or columns, or none: what the features can tell apart at once."""
    image = 0.1 * rng.random((12, 12))
    stripes = np.sin(2.0 * np.arange(12))
    if label:
        image += stripes[:, None] if label == 1 else stripes[None, :]
    return image.ravel().tolist()


def test_a_run_trains_on_leaf_users_with_scattering_features(written, tmp_path):
    from securefl.simulation.sweep import run_sweep

    rng = np.random.default_rng(0)
    content = tree([(f"u{i}", 12) for i in range(4)], features=144)
    for data in content["user_data"].values():
        data["x"] = [striped(label, rng) for label in data["y"]]
    written(content)
    path = tmp_path / "leaf.toml"
    path.write_text(CONFIG)
    seen = []
    summary = run_sweep(
        load_config(path),
        tmp_path / "out",
        data_dir=written.root,
        on_features=lambda done, total: seen.append((done, total)),
    )
    assert summary["dataset"] == "leaf:set"
    assert (summary["train_size"], summary["test_size"], summary["clients"]) == (38, 10, 4)
    assert seen[-1] == (48, 48)
    assert summary["runs"][0]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('data.name="digits"', 'path, shape, classes: for name = "leaf" only'),
        ("data.classes=1", "greater than or equal to 2"),
    ],
)
def test_a_configuration_that_mixes_data_sets_is_refused(tmp_path, override, message):
    path = tmp_path / "leaf.toml"
    path.write_text(CONFIG)
    with pytest.raises(ConfigurationError, match=message):
        load_config(path, [override])
    path.write_text(CONFIG.replace('path = "set"\n', ""))
    with pytest.raises(ConfigurationError, match="needs path"):
        load_config(path)
