"""Tables with protected attributes: files in the publishers' formats, in small."""

import gzip

import numpy as np
import pytest

from gradkin import data

COMPAS_HEADER = (
    "id,sex,age,race,juv_fel_count,juv_misd_count,juv_other_count,priors_count,"
    "days_b_screening_arrest,c_charge_degree,is_recid,score_text,two_year_recid"
)
COMPAS_ROWS = [
    "1,Male,25,Other,0,0,0,0,-1.0,F,0,Low,0",
    "2,Female,26,African-American,0,0,1,3,30.0,M,1,High,1",
    "3,Male,46,Caucasian,0,0,0,0,-31.0,F,0,Low,0",  # too far from the arrest
    "4,Male,46,Caucasian,0,0,0,0,,F,0,Low,0",  # arrest unknown
    "5,Male,46,Caucasian,0,0,0,0,0.0,O,0,Low,0",  # ordinary traffic offence
    "6,Male,46,Caucasian,0,0,0,0,0.0,F,-1,Low,0",  # no case
    "7,Male,46,Caucasian,0,0,0,0,0.0,F,0,N/A,0",  # no score
    "8,Male,46,Caucasian,1,0,0,7,0.0,F,1,Medium,1",
]
ADULT_ROWS = [
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, United-States, <=50K",
    "23, ?, 83311, HS-grad, 9, Divorced, ?, Husband, Black, Female, 0, 0, 13, ?, >50K",
]
ADULT_HEADER = (
    "age,workclass,fnlwgt,education,education-num,marital-status,occupation,relationship,race,sex,"
    "capital-gain,capital-loss,hours-per-week,native-country,income-per-year"
)


def test_compas(tmp_path):
    (tmp_path / "compas-scores-two-years.csv").write_text("\n".join([COMPAS_HEADER, *COMPAS_ROWS]))
    table = data.load_protected(tmp_path, split="all")
    assert table.name == "compas"
    assert table["label"].tolist() == [0, 1, 1]
    assert table["race"].tolist() == [2, 0, 1]
    assert table["sex"].tolist() == [0, 1, 0]
    assert table["age"].tolist() == [25, 26, 46]
    assert table["group"].tolist() == [12, 4, 8]
    assert table["features"].shape == (3, 5)
    parts = [data.load_protected(tmp_path, split=split) for split in ("train", "test")]
    assert sum(map(len, parts)) == 3


def test_adult(tmp_path):
    (tmp_path / "adult.data").write_text("\n".join([*ADULT_ROWS, ""]))
    (tmp_path / "adult.test").write_text("\n".join(["|1x3 Cross validator", ADULT_ROWS[1] + "."]))
    train, test = (data.load_protected(tmp_path, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    assert train["label"].tolist() == [0, 1]
    assert test["label"].tolist() == [1]
    assert train["group"].tolist() == [7, 3]
    np.testing.assert_allclose(train["features"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(test["features"], train["features"][1:])
    assert np.all(np.isfinite(train["features"]))

    packed = tmp_path / "packed"
    packed.mkdir()
    rows = [row.replace(", ", ",") for row in ADULT_ROWS]
    with gzip.open(packed / "adult.csv.gz", "wt") as file:
        file.write("\n".join([ADULT_HEADER, *rows]))
    both = data.load_protected(packed, split="all")
    np.testing.assert_allclose(both["features"], train["features"], rtol=1e-5)


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adult\.data.*found none"):
        data.load_protected(tmp_path)
    with pytest.raises(ValueError, match="Expected split to be one of"):
        data.load_protected(tmp_path, split="dev")
    (tmp_path / "adult.csv").write_text("age,race\n3,White\n")
    with pytest.raises(ValueError, match=r"columns \['workclass'"):
        data.load_protected(tmp_path)
