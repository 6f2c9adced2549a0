"""Tables: encodings, delimiters, and rows that are refused by their line."""

import codecs
import csv
import json
import sys
from itertools import count
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import InputError
from minillm.data import tables
from minillm.data.encodings import STDIN
from minillm.data.tables import Table, columns

TEXT = "Straße, 12,50 €;\tgut | „sehr“"
LEFT, RIGHT = "links", "rechts"
values = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(' ,;\t|"\n'), min_size=1).filter(
    str.strip
)


def write(path, rows, delimiter=",", encoding="utf-8", header=("text", "label")):
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-32"]
)  # fmt: skip
def test_delimiter_and_encoding_are_recognised_and_named_if_they_are_not_the_usual(tmp_path, delimiter, encoding):
    rows = [(TEXT, LEFT), ("a, b", RIGHT), ("c; d", LEFT)] * 9
    table = Table(write(tmp_path / "mine.csv", rows, delimiter, encoding))
    found = table.read("text", "label")
    assert [(row.text("text"), row.text("label")) for row in found.rows] == rows
    assert found.delimiter == delimiter
    note, usual = table.note(found), encoding.startswith("utf-8")
    assert (note == "") == (usual and delimiter == ",")
    assert usual or f"encoding {encoding}" in note
    assert delimiter == "," or repr(delimiter) in note
    assert "--delimiter and --encoding" in note or not note


def test_what_is_given_overrules_and_is_not_reported(tmp_path):
    path = write(tmp_path / "mine.CSV", [("привет, мир", "да")], ";", "cp1251")
    with pytest.raises(InputError, match=r"line 2: not in utf-8 .*--encoding"):
        Table(path).read()
    table = Table(path, ";", "cp1251")
    found = table.read()
    assert (found.rows[0].values, table.note(found)) == ({"text": "привет, мир", "label": "да"}, "")
    tabs = Table(write(tmp_path / "tabs.csv", [("a", "b")], "\t"), "\\t")
    assert tabs.read().rows[0].values == {"text": "a", "label": "b"}
    tsv = Table(write(tmp_path / "mine.tsv", [("a,b", "c")], "\t"))
    assert (tsv.read().rows[0].text("text"), tsv.note(tsv.read())) == ("a,b", "")
    for options, message in (
        ({"delimiter": ";;", "encoding": "cp1251"}, "delimiter must be one character"),
        ({"delimiter": " ", "encoding": "cp1251"}, "delimiter must be one character"),
        ({"encoding": "utf-7000"}, "unknown encoding: 'utf-7000'"),
        ({"encoding": "hex"}, "unknown encoding: 'hex'"),
        ({"encoding": "ascii"}, "not in ascii"),
    ):
        with pytest.raises(InputError, match=message):
            Table(path, **options).read()


def test_one_damaged_byte_does_not_make_a_file_cp1252(tmp_path):
    content = "text,label\nschön,gut\nübel,schlecht\n".encode()
    (tmp_path / "mine.csv").write_bytes(content + b"sch\xf6n,gut\n")
    with pytest.raises(InputError, match=r"mine\.csv, line 4: not in utf-8"):
        Table(tmp_path / "mine.csv").read()
    (tmp_path / "nul.csv").write_bytes(b"text,label\na,b\nc\0,d\n")
    with pytest.raises(InputError, match=r"nul\.csv, line 3: a NUL character"):
        Table(tmp_path / "nul.csv").read()


@given(st.lists(st.tuples(values, values), min_size=1, max_size=4), st.sampled_from(",;\t|"))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows, delimiter):
    path = write(tmp_path_factory.mktemp("csv") / "mine.csv", rows, delimiter)
    found = Table(path).read("text", "label").rows
    # Spaces after a delimiter are no part of a value.
    assert [[value.lstrip(" ") for value in row.values.values()] for row in found] == [
        [value.lstrip(" ") for value in row] for row in rows
    ]


def test_a_quoted_value_may_follow_a_space(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('text, label\n"a, b", "c, d"\n')
    assert columns(path, "text", "label") == [("a, b", "c, d")]


def test_a_spreadsheets_index_column_empty_columns_and_empty_rows_are_no_values(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("\n, text ,label,,\n\n0,a,x,,\n,,,,\n1,b,y,,\n")
    assert columns(path, "text", "label") == [("a", "x"), ("b", "y")]
    path.write_text(path.read_text() + "2,c, d,z,\n")
    with pytest.raises(
        InputError, match="line 7: column 4 has a value but no name in the header; the row: '2,c, d,z,'"
    ):
        columns(path, "text")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["good food, bad service,neg"], "line 3: 3 values for the 2 columns text, label; a value with ','"),
        (["short"], "line 3: 1 values for the 2 columns"),
        (['"open,pos', "b,neg"], "line 3: open or misplaced double quotes (unexpected end of data)"),
        (['"open,pos', 'so-called "best",neg'], "line 3: open or misplaced double quotes"),
        (['"Great" she said,pos'], "line 3: open or misplaced double quotes"),
        (["a,", "b,neg"], "line 3: no value in column 'label'; the row: 'a,'"),
        ([",pos"], "line 3: no value in column 'text'"),
        (["a, \t"], "line 3: no value in column 'label'"),
        (["x" * 200 + ",a,b"], "the row: 'xxxxxxxxx"),
    ],
)
def test_a_wrong_row_is_refused_by_its_line(tmp_path, lines, message):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(["text,label", "first,pos", *lines]) + "\n")
    with pytest.raises(InputError) as refusal:
        columns(path, "text", "label")
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 300 + len(str(path))
    assert "\n" not in str(refusal.value)


def test_a_duplicate_column_is_refused(tmp_path):
    (tmp_path / "mine.csv").write_text("text,label, text\na,b,c\n")
    with pytest.raises(InputError, match="line 1: the column 'text' occurs twice"):
        columns(tmp_path / "mine.csv", "text")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "x", "label": NaN}', "not JSON (NaN is not a JSON number)"),
        ('{"text": "x", "label": 1e999}', "column 'label' must be a text or a finite number, got float"),
        ('{"text": "x", "label": [1]}', "column 'label' must be a text or a finite number, got list"),
        ('{"text": {"a": 1}, "label": 1}', "column 'text' must be a text or a finite number, got dict"),
        ('{"text": "x", "label": 0, "label": 1}', "not JSON (an object has a duplicate name, 'label')"),
        ('{"text": "x", "label": null}', "no value in column 'label'"),
        ('{"text": "x"}', "no column 'label'; columns: text"),
        ('{"text": "half \\ud83d", "label": 1}', "column 'text' must be a text or a finite number, got an unpaired"),
        ('{"text": "x", "label": 1' + "0" * 5000 + "}", "not JSON (Exceeds the limit"),
        ("[" * 100_000, "not JSON ("),
        ("[1]", "every line must be a JSON object"),
    ],
)
def test_a_wrong_json_line_is_refused_by_its_line(tmp_path, row, message):
    if "Exceeds" in message and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python has no limit")
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b", "label": 1}, ensure_ascii=False) + "\n\n" + row, "utf-8")
    with pytest.raises(InputError) as refusal:
        columns(path, "text", "label")
    assert f"mine.jsonl, line 3: {message}" in str(refusal.value)


def test_json_values_are_text_in_nfc_and_whole_numbers_without_a_fraction(tmp_path):
    path = tmp_path / "mine.jsonl"
    found = [1, 1.0, -0.0, 2.5, True, "scho\u0308n", "1.0"]
    path.write_bytes(codecs.BOM_UTF8 + "\n".join(json.dumps({"label": value}) for value in found).encode())
    assert [label for (label,) in columns(path, "label")] == ["1", "1", "0", "2.5", "true", "sch\u00f6n", "1.0"]
    with pytest.raises(InputError, match="JSON lines, which have no delimiter"):
        Table(path, ";").read()


def test_rows_are_read_one_by_one_from_standard_input(monkeypatch):
    """Also from a stream without an end."""
    stream = (f"{n},b\n".encode() if n else b"text,label\n" for n in count())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    rows, delimiter, encoding = Table(STDIN, format="csv").scan("text")
    assert ([next(rows).text("text") for _ in range(3)], delimiter, encoding) == (["1", "2", "3"], ",", "utf-8")
    assert next(stream) == b"4,b\n"


def test_the_limit_of_a_field_fits_into_a_c_long_of_32_bits(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(tables.csv, "field_size_limit", limits.append)
    (tmp_path / "mine.csv").write_text("text,label\na,b\n")
    columns(tmp_path / "mine.csv", "text")
    assert limits == [2**31 - 1]


def test_other_files_than_tables_are_refused(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"review": "a", "verdict": 1}\n\n{"review": b\n')
    (tmp_path / "header.csv").write_text("review,verdict\n")
    (tmp_path / "empty.csv").write_text("")
    for name, message in {
        "broken.jsonl": r"broken\.jsonl, line 3: not JSON \(Expecting value, column 12\)",
        "none.csv": "cannot be read",
        "mine.parquet": r"must be a \.csv, \.tsv or \.jsonl file",
        "header.csv": "has no rows",
        "empty.csv": "has no rows",
    }.items():
        with pytest.raises(InputError, match=message):
            Table(tmp_path / name).read()
