"""Loaders accept exactly what they should, and say what else they found."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefl.errors import ConfigurationError, DataNotFound
from securefl.training import data
from securefl.training.data import (
    HEART_SITES,
    Dataset,
    MalformedData,
    load,
    read_heart_site,
    read_idx,
    stratified_split,
)


def idx(array):
    """An IDX file of unsigned bytes."""
    array = np.asarray(array, dtype=np.uint8)
    dims = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + dims + array.tobytes()


def write(path, content):
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# ------------------------------------------------------------------ splits


@given(
    strata=st.lists(st.integers(0, 5), min_size=3, max_size=200),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_disjoint_complete_stratified_and_repeatable(strata, fraction, seed):
    strata = np.array(strata)
    wanted = int(np.ceil(len(strata) * fraction))
    if wanted == len(strata):
        with pytest.raises(ConfigurationError, match="cannot be split"):
            stratified_split(strata, test_fraction=fraction, seed=seed)
        return
    train, test = stratified_split(strata, test_fraction=fraction, seed=seed)
    assert sorted([*train, *test]) == list(range(len(strata)))
    assert len(test) == wanted
    for value in np.unique(strata):
        exact = (strata == value).sum() * wanted / len(strata)
        assert abs((strata[test] == value).sum() - exact) < 1
    again = stratified_split(strata, test_fraction=fraction, seed=seed)
    assert np.array_equal(test, again[1])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_an_impossible_fraction_is_refused(fraction):
    with pytest.raises(ConfigurationError, match="test_fraction"):
        load("digits", test_fraction=fraction)


# ------------------------------------------------------------------ scikit-learn's two


def test_digits_are_scaled_by_their_known_range():
    train, test = load("digits")
    assert (train.x.shape, test.x.shape) == ((1437, 64), (360, 64))
    whole = np.concatenate([train.x, test.x])
    assert whole.min() == np.float32(-0.3)
    assert whole.max() == np.float32(0.7)
    assert train.classes == 10
    assert train.input_shape == (64,)
    assert len(train.feature_names) == 64


def test_splits_follow_the_seed():
    first, again, other = (load("digits", seed=s).test.x for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_breast_cancer_is_scaled_by_published_bounds():
    train, test = load("breast-cancer")
    assert (len(train), len(test)) == (455, 114)
    whole = np.concatenate([train.x, test.x])
    assert whole.shape == (569, 30)
    # The published bounds are the rounded extremes: each feature spans (nearly) the whole range.
    assert np.abs(whole).max() <= 1.0
    assert (whole.min(axis=0) < -0.93).all()
    assert (whole.max(axis=0) > 0.93).all()
    assert np.bincount(np.concatenate([train.y, test.y])).tolist() == [212, 357]


def test_the_published_bounds_are_those_of_the_description():
    """The table in the source equals the one printed in scikit-learn's description."""
    from sklearn.datasets import load_breast_cancer

    printed = []
    for line in load_breast_cancer().DESCR.splitlines():
        name, _, numbers = line.partition(":  ")
        if name.split("(")[-1].rstrip(")") in {"mean", "standard error", "worst"}:
            printed.append(tuple(float(number) for number in numbers.split()))
    assert np.array_equal(data._BREAST_CANCER_BOUNDS, np.array(printed))


# ------------------------------------------------------------------ IDX


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (1, 1, 1, 1)])
def test_an_idx_file_is_read_as_it_was_written(tmp_path, suffix, shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = write(tmp_path / f"x{suffix}", idx(array))
    assert np.array_equal(read_idx(path), array)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert np.array_equal(read_idx(path, sha256=digest), array)


GOOD = idx(np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "magic"),
        (GOOD[:3], "magic"),
        (b"\x00\x00\x09\x02" + GOOD[4:], "magic"),
        (b"\x01\x00\x08\x02" + GOOD[4:], "magic"),
        (b"\x00\x00\x08\x00" + GOOD[4:], "magic"),
        (b"\x00\x00\x08\x05" + GOOD[4:], "magic"),
        (GOOD[:9], "header ends early"),
        (GOOD[:-1], "expected 6 bytes of contents, found 5"),
        (GOOD + b"\x00", "left over"),
        (b"\x00\x00\x08\x02" + struct.pack(">2I", 0, 3), "announces"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31), "announces"),
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path, suffix, content, message):
    with pytest.raises(MalformedData, match=message):
        read_idx(write(tmp_path / f"x{suffix}", content))


def test_a_size_is_capped_before_memory_is_taken(tmp_path):
    path = write(tmp_path / "x", idx(np.zeros((10, 10))))
    assert read_idx(path, max_bytes=100).shape == (10, 10)
    with pytest.raises(MalformedData, match=r"100 bytes; expected 1\.\.99"):
        read_idx(path, max_bytes=99)
    huge = write(tmp_path / "y", b"\x00" * 6000)
    with pytest.raises(MalformedData, match="larger than"):
        read_idx(huge, max_bytes=100)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    packed = gzip.compress(b"\x00\x00\x08\x01" + struct.pack(">I", 5) + b"\x00" * 50_000_000)
    path = tmp_path / "x.gz"
    path.write_bytes(packed)
    with pytest.raises(MalformedData, match="left over"):
        read_idx(path)


@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    packed = bytearray(gzip.compress(idx(np.arange(200))))
    if damage == "cut":
        packed = packed[:-9]
    elif damage == "flip":
        packed[-6] ^= 1  # the checksum
    else:
        packed = bytearray(b"no gzip at all")
    path = tmp_path / "x.gz"
    path.write_bytes(bytes(packed))
    with pytest.raises(MalformedData):
        read_idx(path)


def test_another_digest_is_refused_with_both(tmp_path):
    path = write(tmp_path / "x", GOOD)
    with pytest.raises(MalformedData, match=r"expected 00ff.*allow_unknown"):
        read_idx(path, sha256="00ff")


# ------------------------------------------------------------------ MNIST


def fake_mnist(folder, *, suffix=".gz", images=None, labels=None):
    (folder / "mnist").mkdir()
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 20), ("t10k", 7)):
        pixels = rng.integers(0, 256, (n, 28, 28)) if images is None else images
        digits = rng.integers(0, 10, len(pixels)) if labels is None else labels
        write(folder / "mnist" / f"{prefix}-images-idx3-ubyte{suffix}", idx(pixels))
        write(folder / "mnist" / f"{prefix}-labels-idx1-ubyte{suffix}", idx(digits))
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_unknown_mnist_files_need_permission(tmp_path, suffix):
    folder = fake_mnist(tmp_path, suffix=suffix)
    with pytest.raises(MalformedData, match="SHA-256"):
        load("mnist", folder)
    train, test = load("mnist", folder, allow_unknown=True)
    assert (train.x.shape, test.x.shape) == ((20, 1, 28, 28), (7, 1, 28, 28))
    raw = np.round((train.x * 0.3081 + 0.1307) * 255).astype(int)
    assert raw.min() >= 0
    assert raw.max() <= 255


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((3, 28, 27)), np.zeros(3), "expected train images"),
        (np.zeros((3, 28, 28)), np.zeros(4), "expected train images"),
        (np.zeros((3, 28, 28)), np.array([1, 2, 10]), "label is 10"),
    ],
)
def test_inconsistent_mnist_files_are_refused(tmp_path, images, labels, message):
    folder = fake_mnist(tmp_path, images=images, labels=labels)
    with pytest.raises(MalformedData, match=message):
        load("mnist", folder, allow_unknown=True)


def test_missing_data_is_named_by_folder_and_file(tmp_path, monkeypatch):
    monkeypatch.delenv("SECUREFL_DATA", raising=False)
    with pytest.raises(DataNotFound, match="SECUREFL_DATA"):
        load("mnist")
    with pytest.raises(DataNotFound, match=str(tmp_path / "mnist")):
        load("mnist", tmp_path)
    (tmp_path / "mnist").mkdir()
    with pytest.raises(DataNotFound, match="train-images-idx3-ubyte"):
        load("mnist", tmp_path)
    (tmp_path / "heart_disease").mkdir()
    with pytest.raises(DataNotFound, match=r"heart_disease.*processed\.cleveland\.data"):
        load("heart-disease", str(tmp_path))


def test_the_data_folder_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SECUREFL_DATA", str(fake_mnist(tmp_path)))
    assert len(load("mnist", allow_unknown=True).train) == 20


@pytest.mark.data
def test_the_published_mnist_files_load(data_dir):
    train, test = load("mnist", data_dir)
    assert (train.x.shape, test.x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert np.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The published mean and deviation are those of the training images.
    assert abs(float(train.x.mean())) < 1e-3
    assert abs(float(train.x.std()) - 1) < 1e-3


@pytest.mark.data
def test_unpacked_mnist_files_load_alike(data_dir, tmp_path):
    (tmp_path / "mnist").mkdir()
    for name in data._MNIST_DIGESTS:
        packed = (data_dir / "mnist" / f"{name}.gz").read_bytes()
        (tmp_path / "mnist" / name).write_bytes(gzip.decompress(packed))
    assert np.array_equal(load("mnist", tmp_path).test.x, load("mnist", data_dir).test.x)


# ------------------------------------------------------------------ Heart Disease

LINE = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n"


def test_numbers_are_read_in_all_their_spellings(tmp_path):
    text = LINE + "63,1,4,?,0,?,1,.7,?,-.5,?,?,?,2\n"
    table = read_heart_site(write(tmp_path / "x.data", text.encode()))
    assert table.shape == (2, 14)
    assert table[0].tolist() == [63, 1, 1, 145, 233, 1, 2, 150, 0, 2.3, 3, 0, 6, 0]
    assert np.isnan(table[1]).sum() == 6
    assert table[1, [7, 9]].tolist() == [0.7, -0.5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE[:-3], "line 1: expected 14 fields, found 13"),
        (LINE.strip() + ",1\n", "expected 14 fields, found 15"),
        ("\n", "expected 14 fields, found 1"),
        (LINE.replace("145.0", "high"), "trestbps must be a number or .*'high'"),
        (LINE.replace("145.0", "nan"), "trestbps must be a number"),
        (LINE.replace("145.0", "1e3"), "trestbps must be a number"),
        (LINE.replace("145.0", " 145"), "trestbps must be a number"),
        (LINE.replace("145.0", "1" * 13), "trestbps must be a number"),
        (LINE.replace("145.0", ""), "trestbps must be a number"),
        (LINE.replace("6.0,0", "5.0,0"), r"thal must be in \(3, 6, 7\), found 5.0"),
        (LINE.replace("6.0,0", "6.0,5"), "num must be in"),
        (LINE.replace("6.0,0", "6.0,?"), "num must not be missing"),
        (LINE.replace("63.0", "?"), "age must not be missing"),
        (LINE.replace("63.0", "6é"), "not ASCII"),
        ("", "no records"),
    ],
)
def test_a_malformed_heart_file_is_refused(tmp_path, line, message):
    with pytest.raises(MalformedData, match=message):
        read_heart_site(write(tmp_path / "x.data", line.encode()))


def test_an_oversized_heart_file_is_refused(tmp_path):
    with pytest.raises(MalformedData, match="larger than"):
        read_heart_site(write(tmp_path / "x.data", LINE.encode() * 20_000))


def fake_heart(folder):
    (folder / "heart_disease").mkdir()
    missing = "40,0,2,0,0,?,?,?,?,?,?,?,?,3\n"
    for site in HEART_SITES:
        path = folder / "heart_disease" / f"processed.{site}.data"
        path.write_text((LINE + missing) * 5)
    return folder


def test_missing_cells_sit_at_mid_range_with_an_indicator(tmp_path):
    folder = fake_heart(tmp_path)
    with pytest.raises(MalformedData, match="SHA-256"):
        load("heart-disease", folder)
    train, test = load("heart-disease", folder, allow_unknown=True, test_fraction=0.4)
    assert np.bincount(test.groups).tolist() == [4] * 4
    row = dict(zip(train.feature_names, train.x[train.y == 1][0].tolist(), strict=True))
    assert row["age"] == pytest.approx(2 * 20 / 70 - 1)
    for name in ("trestbps", "chol", "fbs", "thalach", "exang", "oldpeak", "ca"):
        assert row[name] == 0.0
        assert row[f"{name} missing"] == 1.0
    for name in ("restecg=0", "slope=1", "slope=2", "slope=3", "thal=3", "thal=6", "thal=7"):
        assert row[name] == 0.0
    full = dict(zip(train.feature_names, train.x[train.y == 0][0].tolist(), strict=True))
    assert full["chol"] == pytest.approx((2 * 233 - 680) / 520)
    assert full["thal=6"] == full["slope=3"] == full["cp=1"] == full["sex"] == full["fbs"] == 1.0
    assert full["exang"] == -1.0
    assert not any(full[name] for name in full if name.endswith("missing"))


def test_the_complete_view_drops_records_with_missing_cells(tmp_path):
    folder = fake_heart(tmp_path)
    train, test = load(
        "heart-disease", folder, view="complete", allow_unknown=True, test_fraction=0.4
    )
    assert len(train) + len(test) == 20
    assert not any("missing" in name or "thal=" in name for name in train.feature_names)


@pytest.mark.data
def test_heart_disease_has_the_published_counts(data_dir):
    tables = {
        site: read_heart_site(
            data_dir / "heart_disease" / f"processed.{site}.data",
            sha256=data._HEART_DIGESTS[site],
        )
        for site in HEART_SITES
    }
    in_order = [tables[site] for site in HEART_SITES]
    assert [len(t) for t in in_order] == [303, 294, 123, 200]
    assert [int((t[:, 13] > 0).sum()) for t in in_order] == [139, 106, 115, 149]
    assert [int(np.isnan(t).sum()) for t in in_order] == [6, 782, 273, 698]
    assert [int(np.isnan(t[:, 10]).sum()) for t in in_order] == [0, 190, 17, 102]
    assert [int(np.isnan(t[:, 11]).sum()) for t in in_order] == [4, 291, 118, 198]
    assert [int(np.isnan(t[:, 12]).sum()) for t in in_order] == [2, 266, 52, 166]
    assert [int((t[:, 4] == 0).sum()) for t in in_order] == [0, 0, 123, 49]
    assert [int((t[:, 3] == 0).sum()) for t in in_order] == [0, 0, 0, 1]


@pytest.mark.data
@pytest.mark.parametrize(
    ("view", "sizes"), [("imputed", [303, 294, 123, 200]), ("complete", [303, 261, 46, 130])]
)
def test_the_views_of_heart_disease_have_their_sizes(data_dir, view, sizes):
    train, test = load("heart-disease", data_dir, view=view)
    together = np.concatenate([train.groups, test.groups])
    assert np.bincount(together).tolist() == sizes
    for site, size in enumerate(sizes):
        share = (test.groups == site).sum() / size
        assert abs(share - 0.2) < 0.03
    assert np.isfinite(train.x).all()
    assert np.abs(train.x).max() <= 1.0
    assert set(np.unique(train.y)) == {0, 1}


# ------------------------------------------------------------------ Dataset


def test_a_subset_keeps_labels_groups_and_names_together(tmp_path):
    train, _ = load("heart-disease", fake_heart(tmp_path), allow_unknown=True)
    part = train.subset(np.array([3, 0]))
    assert np.array_equal(part.x, train.x[[3, 0]])
    assert np.array_equal(part.y, train.y[[3, 0]])
    assert np.array_equal(part.groups, train.groups[[3, 0]])
    assert part.feature_names == train.feature_names


def test_an_inconsistent_dataset_is_refused():
    x, y = np.zeros((3, 2), np.float32), np.zeros(3, np.int64)
    good = {"name": "digits", "x": x, "y": y, "classes": 2}
    assert "array" not in repr(Dataset(**good))
    for changed in (
        {"x": x.astype(float)},
        {"y": y.astype(np.int32)},
        {"y": y[:2]},
        {"groups": y[:2]},
        {"feature_names": ("a",)},
    ):
        with pytest.raises(ConfigurationError):
            Dataset(**{**good, **changed})


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigurationError, match="digits, breast-cancer, mnist, heart-disease"):
        load("cifar")
    with pytest.raises(ConfigurationError, match="imputed, complete"):
        load("heart-disease", "/", view="dropped")
