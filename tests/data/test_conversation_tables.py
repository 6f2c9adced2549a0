"""Conversations in files: kinds and roles as others write them, and an error for each wrong row, with its line."""

import json

import pytest

from minillm import InputError
from minillm.data.conversation_tables import lecture, table_conversations
from minillm.data.tables import Table

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "you"}
PAIR = [USER, ASSISTANT]


def written(path, *rows, ends="\n"):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes((ends.join(lines) + ends).encode())
    return Table(path)


def read(table, kind=None, columns=()):
    found = table_conversations(table, kind, columns, None, None)
    rows = [*found.train, *found.validation, *found.test]
    return sorted(rows, key=lambda row: row.place)


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("messages", {"messages": PAIR}, PAIR),
        ("messages", {"messages": [{"role": "model", "content": "x"} | ASSISTANT | {"role": "model"}]}, None),
        ("messages", {"messages": [USER, {"role": "model", "content": "you\r\n"}]}, PAIR),
        ("messages", {"messages": [USER | {"content": [{"type": "text", "text": "hi"}]}, ASSISTANT]}, PAIR),
        ("messages", {"system": "be brief", "messages": PAIR}, [{"role": "system", "content": "be brief"}, *PAIR]),
        ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "you"}]}, PAIR),
        ("alpaca", {"instruction": "hi", "input": "", "output": "you"}, PAIR),
        ("alpaca", {"instruction": "hi", "input": "a", "output": "you"}, [USER | {"content": "hi\n\na"}, ASSISTANT]),
        ("answers", {"prompt": "hi", "completion": "you"}, PAIR),
        ("answers", {"question": "hi", "answer": "you"}, PAIR),
    ],
)
def test_each_kind_is_recognised_by_its_columns(tmp_path, kind, row, expected):
    table = written(tmp_path / "a.jsonl", *[row] * 8, ends="\r\n")
    if expected is None:
        with pytest.raises(InputError, match="line 1: message 1 is of assistant; after the start comes system or user"):
            read(table)
        return
    assert [conversation.messages for conversation in read(table)] == [expected] * 8
    assert table_conversations(table, None, (), None, None).note.startswith(
        f"{table.path}: recognised {kind} by its columns, "
    )
    assert read(table, kind) == read(table)


def test_labelled_texts_stay_labelled_texts_and_other_columns_are_named(tmp_path):
    labelled = written(tmp_path / "a.jsonl", {"text": "a", "label": "b", "messages": []})
    assert table_conversations(labelled, None, (), None, None) is None
    with pytest.raises(
        InputError, match=r"columns dialogue, id, and data of a known kind others \(messages has messages; sh"
    ):
        read(written(tmp_path / "a.jsonl", {"dialogue": "a", "id": 1}))
    with pytest.raises(InputError, match="the columns a, and data of alpaca others"):
        read(written(tmp_path / "a.jsonl", {"a": "b"}), "alpaca")


def test_csv_with_a_byte_order_mark_and_given_columns(tmp_path):
    table = written(tmp_path / "a.csv", "\ufeffq,a", *['"hi"," you "'] * 8)
    assert [row.messages for row in read(table, "answers", ["q", "a"])] == [PAIR] * 8
    with pytest.raises(InputError, match=r"must be a list of messages, got str; a .jsonl file has lists"):
        read(written(tmp_path / "a.csv", "messages,x", '"[]",1'), "messages")


def test_a_json_array_is_read_as_its_rows(tmp_path):
    table = written(tmp_path / "a.json", json.dumps([{"instruction": "hi", "output": "you"}] * 8, indent=1))
    assert [row.messages for row in read(table)] == [PAIR] * 8
    for text, message in (
        ("[{}, 1]", "a.json, row 2: every line must be a JSON object"),
        ("{}", "a.json must be an array of objects, got dict"),
        ("[{}", "a.json: not JSON"),
        ('[{"a": 1, "a": 2}]', "a.json: not JSON .*duplicate name, 'a'"),
    ):
        with pytest.raises(InputError, match=message):
            written(tmp_path / "a.json", text).read()


def test_tools_and_the_calls_of_an_answer_are_kept(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    row = {"messages": [USER, call, {"role": "tool", "content": "3"}, ASSISTANT], "tools": [{"name": "add"}]}
    found = read(written(tmp_path / "a.jsonl", *[row] * 8))[0]
    assert found.tools == row["tools"]
    assert found.messages == [USER, call | {"content": ""}, *row["messages"][2:]]


WRONG = {
    "no list": ({"messages": "hi"}, "'messages' must be a list of messages, got str; a .jsonl file has lists"),
    "null": ({"messages": None}, "'messages' must be a list of messages, got NoneType"),
    "empty": ({"messages": []}, "no message of the assistant"),
    "no answer": ({"messages": [USER]}, "no message of the assistant, and so nothing to train on"),
    "a text": ({"messages": ["hi"]}, "message 1 must be an object with role and content, got str"),
    "a role": ({"messages": [USER | {"role": "User"}]}, "message 1 has the role 'User'; the roles are system, "),
    "no role": ({"messages": [{"content": "a"}]}, "message 1 has the role None"),
    "a list as a role": ({"messages": [USER | {"role": []}]}, r"message 1 has the role \[\]"),
    "two systems": ({"messages": [USER | {"role": "system"}] * 2}, "message 2 is of system; after system comes user"),
    "two users": ({"messages": [USER, USER]}, "message 2 is of user; after user comes assistant"),
    "two answers": ({"messages": [*PAIR, ASSISTANT]}, "message 3 is of assistant; after assistant comes user or tool"),
    "empty content": (
        {"messages": [USER, ASSISTANT | {"content": " \n"}]},
        "no value in column 'content of message 2'",
    ),
    "no content": (
        {"messages": [USER, {"role": "assistant"}]},
        "no value in column 'content of message 2'",
    ),
    "an image": (
        {"messages": [USER | {"content": [{"type": "image"}]}]},
        ".*content of message 1' must be a text .*, got list",
    ),
    "a surrogate": (
        r'{"messages": [{"role": "user", "content": "\ud800"}]}',
        ".*, got an unpaired surrogate",
    ),
    "tools": ({"messages": PAIR, "tools": "add"}, "tools must be a list, got str"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_is_refused_with_its_file_and_line(tmp_path, name):
    row, message = WRONG[name]
    with pytest.raises(InputError, match=f"a.jsonl, line 2: {message}") as refusal:
        read(written(tmp_path / "a.jsonl", {"messages": PAIR}, row))
    assert "\n" not in str(refusal.value)


def test_messages_after_the_last_answer_are_reported(tmp_path):
    table = written(tmp_path / "a.jsonl", *[{"messages": [*PAIR, USER]}, {"messages": PAIR}] * 4)
    note = table_conversations(table, "messages", (), None, None).note
    assert note == "4 of 8 conversations have messages after the last answer: not used"


def test_the_lecture_is_trained_on_questions_and_tested_on_their_paraphrases():
    task = lecture()
    assert [len(task.train), len(task.validation), len(task.test)] == [120, 60, 60]
    for asked, paraphrase in zip(task.train, [*task.validation, *task.test], strict=True):
        assert asked.messages[1] == paraphrase.messages[1]
        assert asked.text != paraphrase.text
        answer = asked.messages[1]["content"].lower()
        assert all(word.strip().lower() in answer for word in asked.keywords)
