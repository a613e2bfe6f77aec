"""tasks/validate.py, tasks/data/hints.py: every bad line is named, every good one is used once."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import DataError
from infra.records import Dataset, Split
from infra.settings import Settings
from infra.storage.store import Store
from tasks.data.hash_index import Hashes
from tasks.data.scan import judge_line as judged
from tasks.data.scan import survey
from tasks.data.schema import clean, json_value, kind_of, quick
from tasks.data.sources import Places
from tasks.ingest import ingest
from tasks.validate import GLUED, hold_out, line_of, validate
from tests.tasks.data.test_schema import closely


def line(prompt: str = "p", completion: Any = "c") -> str:
    return json.dumps({"prompt": prompt, "completion": completion})


def bring(settings: Settings, store: Store, path: Path, text: str | bytes) -> Dataset:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return ingest(settings, store, str(path))


def judge(settings: Settings, store: Store, tmp_path: Path, text: str | bytes, wanted: int = 50) -> Split:
    return validate(store, bring(settings, store, tmp_path / "data.jsonl", text), None, wanted)


def rows_of(store: Store, split: Split, name: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (store.fetch(split.folder) / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("bad", "words"), [
    (line(completion=17), '"completion" is a number (17); expected a string. Quote it.'),
    (line(completion=None), '"completion" is null; expected a string'), (line(completion=" "), '"completion" is empty'),
    ('{"prompt": "x"}', '"completion" is missing'), ('{"question": "x"}', 'the keys are "question"'),
    ('{"text": "x", "prompt": "y"}', "mixes prompt and text"), ('{"text": "x"}', "of the kind text"),
    ('{"prompt": "x", "completion": NaN}', "NaN is not a JSON value"), ("[1, 2]", "the line is an array"),
    ('{"prompt": "a", "prompt": "b", "completion": "c"}', 'the key "prompt" stands twice'),
    ('{"prompt": "\\ud800", "completion": "c"}', "half of a surrogate pair"),
    ("{'prompt': 'x', 'completion': 'y'}", "Python dict; write it with json.dumps"),
    ("prompt,completion", "looks like CSV"), ('{"prompt": "x",', "one complete object per line")])
def test_a_bad_line_is_named_with_a_remedy(
    settings: Settings, store: Store, tmp_path: Path, bad: str, words: str,
) -> None:
    with pytest.raises(DataError) as caught:
        judge(settings, store, tmp_path, f"{line()}\n{line('q')}\n{bad}\n")
    assert str(caught.value).startswith("data.jsonl line 3: ") and words in str(caught.value)


def test_all_bad_lines_are_counted_and_the_first_twenty_shown(
    settings: Settings, store: Store, tmp_path: Path,
) -> None:
    with pytest.raises(DataError) as caught:
        judge(settings, store, tmp_path, "\n".join([line(), *[line(completion=i) for i in range(30)]]))
    message = str(caught.value)
    assert "30 of 31 lines cannot be used" in message and "data.jsonl line 21:" in message
    assert "line 22:" not in message and "and 10 more" in message


@pytest.mark.parametrize(("name", "words"), [
    ("dialogsum_dev__jsonl_is_python_repr.jsonl", "It is a Python dict; write it with json.dumps."),
    ("samsum_validation.csv", "It looks like CSV"),
    ("samsum_validation__named_json_is_jsonl.json", "expected {\"prompt\", \"completion\"}, {\"text\"}")])
def test_real_mislabelled_files_get_a_useful_sentence(
    settings: Settings, store: Store, shared: Path, name: str, words: str,
) -> None:
    data = ingest(settings, store, str(shared / "data" / "ugly_realworld" / name))
    with pytest.raises(DataError) as caught:
        validate(store, data, None, 50)
    assert words in str(caught.value)
    assert store.names("splits") == []


def published_cases(shared: Path) -> dict[str, bytes]:
    """Documents of JSONTestSuite: names in y_ are to be accepted, those in n_ refused, those in i_ may be either."""
    return {path.name: path.read_bytes() for path in (shared / "data" / "json_test_suite" / "test_parsing").iterdir()}


def is_json(document: bytes) -> bool:
    try:
        json_value(document, "here")
    except DataError:
        return False
    return True


def test_every_published_json_case_gets_its_published_verdict(shared: Path) -> None:
    verdicts = {name: is_json(document) for name, document in published_cases(shared).items()}
    wanted = {name: name.startswith("y_") for name in verdicts if not name.startswith("i_")}
    assert {name for name in wanted if verdicts[name] is not wanted[name]} == set() and len(wanted) > 180


def test_published_json_cases_as_lines_of_a_file_are_refused_by_number(shared: Path, tmp_path: Path) -> None:
    cases = {name: document for name, document in sorted(published_cases(shared).items()) if b"\n" not in document}
    bad = [document for name, document in cases.items() if name.startswith("n_") and document.strip()]
    (tmp_path / "n.jsonl").write_bytes(b"".join(line().encode() + b"\n" + document + b"\n" for document in bad))
    with pytest.raises(DataError, match=f"{len(bad)} of {2 * len(bad)} lines cannot be used") as caught:
        survey(tmp_path / "n.jsonl", Places("n.jsonl"))
    named = re.findall(r"\d+", " ".join(re.findall(r"n\.jsonl lines? ([\d, ]+)", str(caught.value))))
    assert len(bad) > 100, "alike ones stand together"
    assert {str(2 * i) for i in range(1, 21)} <= set(named) <= {str(2 * i) for i in range(1, len(bad) + 1)}


def test_valid_json_that_is_no_row_is_refused_for_that_alone(shared: Path) -> None:
    for name, document in published_cases(shared).items():
        if name.startswith("y_"):
            with pytest.raises(DataError) as caught:
                judged(document, 1, Places("here"))
            assert "not JSON" not in str(caught.value), name


def test_an_empty_prompt_is_a_prompt(settings: Settings, store: Store, tmp_path: Path) -> None:
    assert judge(settings, store, tmp_path, f"{line('')}\n{line('q')}\n").train_rows == 1


def test_odd_but_valid_input_is_accepted(settings: Settings, store: Store, tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + "\r\n".join([line("a\u2028b"), "", line("c\x0bd"), line("\U0001f600"), ""]).encode()
    split = judge(settings, store, tmp_path, text)
    assert split.train_rows + split.validation_rows == 3


@pytest.mark.parametrize(("rows", "held"), [(1, 0), (2, 1), (5, 1), (100, 10), (1000, 50)])
def test_the_training_set_is_never_emptied(
    settings: Settings, store: Store, tmp_path: Path, rows: int, held: int,
) -> None:
    split = judge(settings, store, tmp_path, "\n".join(line(str(i)) for i in range(rows)))
    assert (split.train_rows, split.validation_rows) == (rows - held, held)
    prompts = [row["prompt"] for name in ("train", "validation") for row in rows_of(store, split, name)]
    assert sorted(prompts) == sorted(map(str, range(rows)))


def test_copies_of_a_prompt_stay_on_one_side(settings: Settings, store: Store, tmp_path: Path) -> None:
    split = judge(settings, store, tmp_path, "\n".join(line(str(i % 30), str(i)) for i in range(120)))
    sides = [{row["prompt"] for row in rows_of(store, split, name)} for name in ("train", "validation")]
    assert not sides[0] & sides[1] and split.duplicates == 90


def held(folder: Path, prompts: list[bytes], wanted: int, dropped: tuple[int, ...] = ()) -> set[bytes]:
    """The prompts that are held out of rows with these hashes."""
    hashes = Hashes(folder)
    for row, prompt in enumerate(prompts):
        hashes.add(prompt, row)
    kept = ~np.isin(np.arange(len(prompts)), dropped)
    rows = hold_out(hashes, kept, wanted)
    assert not {prompts[row] for row in np.flatnonzero(rows)} & {prompts[row] for row in np.flatnonzero(~rows)}
    return {prompts[row] for row in np.flatnonzero(rows)}


def test_a_prompt_with_very_many_copies_is_not_held_out(tmp_path: Path) -> None:
    prompts = [bytes([1]) * 16] * 900 + [bytes([i // 256, i % 256]) * 8 for i in range(1000, 1100)]
    assert bytes([1]) * 16 not in held(tmp_path, prompts, 50) and len(held(tmp_path, prompts, 50)) == 50


def test_the_split_does_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    prompts = [bytes([i]) * 16 for i in range(200)]
    assert held(tmp_path, prompts, 10) == held(tmp_path, prompts[::-1], 10) == set(prompts[:10])


@pytest.mark.parametrize(("copies", "wanted", "dropped", "found"), [
    ([5], 3, (), ""), ([1, 1], 3, (), "a"), ([3, 2], 3, (), "b"), ([2, 2], 3, (), "a"), ([5, 1], 1, (), "b"),
    ([15, 5], 3, (), "b"), ([1, 1], 3, (0,), ""), ([3, 3], 1, (3, 4), "b"), ([1] * 20, 9, (), "ab"),
    ([1] * 20, 9, (0,), "b"), ([30, 1, 1, 1], 3, (), "bcd")])
def test_never_all_prompts_are_held_out_and_no_copy_stays(
    tmp_path: Path, copies: list[int], wanted: int, dropped: tuple[int, ...], found: str,
) -> None:
    """Prompt number i has the i-th smallest hash and so many copies."""
    prompts = [bytes([10 * i]) * 16 for i, count in enumerate(copies) for _ in range(count)]
    assert held(tmp_path, prompts, wanted, dropped) == {bytes([10 * (ord(name) - ord("a"))]) * 16 for name in found}


def test_how_far_each_pass_is_can_be_heard(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bring(settings, store, tmp_path / "d.jsonl", "".join(line(f"p{i}") + "\n" for i in range(50000)))
    monkeypatch.setattr("infra.progress.TELL_EVERY_S", 0.0)
    said: list[str] = []
    validate(store, data, None, 50, say=said.append)
    judged = [int(found[1]) for one in said if (found := re.fullmatch(r"judged: [012] of 2 MB \((\d+)%\)", one))]
    assert judged == sorted(judged) and judged[0] < 50 and judged[-1] >= 99
    assert "looking at 50000 rows" in said[len(judged)] and said[-1] == "written: 49999 of 50000 rows (100%)"


def test_bad_validation_data_is_told_with_bad_training_data(settings: Settings, store: Store, tmp_path: Path) -> None:
    bad = [bring(settings, store, tmp_path / f"{name}.jsonl", f"{line(name)}\nno JSON\n") for name in ("a", "b")]
    good = bring(settings, store, tmp_path / "good.jsonl", f"{line()}\n{line('q')}\n")
    for files, told in ((bad, ["a", "b"]), ((bad[0], good), ["a"]), ((good, bad[1]), ["b"])):
        with pytest.raises(DataError) as caught:
            validate(store, files[0], files[1], 50)
        assert re.findall(r"(\w+)\.jsonl line 2: not JSON", str(caught.value)) == told


def test_validation_data_is_cut_to_its_first_rows(settings: Settings, store: Store, tmp_path: Path) -> None:
    data = bring(settings, store, tmp_path / "t.jsonl", "\n".join(line(str(i)) for i in range(9)))
    other = bring(settings, store, tmp_path / "v.jsonl", "\n".join(line(str(i)) for i in range(7, 20)))
    split = validate(store, data, other, 5)
    assert (split.train_rows, split.validation_rows, split.leaks) == (9, 5, 2)
    assert [row["prompt"] for row in rows_of(store, split, "validation")] == ["7", "8", "9", "10", "11"]


def test_splits_keep_the_names_and_rows_they_had_before(settings: Settings, store: Store, tmp_path: Path) -> None:
    """Recorded with release 0.1.0: other digests would train every model again."""
    split = judge(settings, store, tmp_path, "\n".join(line(str(i)) for i in range(30)))
    assert split.digest == "a64b740148977daff7a8652cf34e533adb83ec5a2b65136bc21d618b4aeeef9a"
    files = [store.fetch(split.folder) / f"{name}.jsonl" for name in ("train", "validation")]
    found = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert found == "81dd55860ce8e92431234cf2df1d6aad82ddf8691e8741647b2724bb84cd2aaf"


@pytest.mark.parametrize(("completion", "separator"), [("c", "\n"), (" c", "")])
def test_a_line_break_is_put_between_only_where_there_is_no_space(
    settings: Settings, store: Store, tmp_path: Path, completion: str, separator: str,
) -> None:
    split = judge(settings, store, tmp_path, "\n".join(line(str(i), completion) for i in range(3)))
    assert split.separator == separator


def test_rows_that_the_majority_glues_are_named(settings: Settings, store: Store, tmp_path: Path) -> None:
    rows = [line(f"p{i}", " c") for i in range(8)] + [line("glued", "c"), line("too", "c")]
    split = judge(settings, store, tmp_path, "\n".join(rows))
    found = {finding.what: finding.first for finding in split.findings}
    assert split.separator == "" and found[GLUED] == ["data.jsonl line 9", "data.jsonl line 10"]


def test_messages_keep_role_and_content_only() -> None:
    row = {"messages": [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}], "id": 1}
    assert kind_of(row, "here") == "messages"
    assert clean(row, "messages", "here") == {"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def test_the_first_good_row_is_named_when_another_is_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "d").write_text('{"text"\n\n{"text": "t"}\n{"prompt": "p", "completion": "c"}\n')
    with pytest.raises(DataError, match=r"d line 4: the row is of the kind prompt; expected text, as in d line 3"):
        survey(tmp_path / "d", Places("d"))


def test_places_are_right_behind_blank_lines(settings: Settings, store: Store, tmp_path: Path) -> None:
    lines = ["", line("a"), "", "", line("b"), line("a"), "", line("b"), line("b"), *(line(f"{i}") for i in range(9))]
    split = judge(settings, store, tmp_path, "\n".join(lines))
    found = {finding.what: finding.first for finding in split.findings}
    assert found["rows that repeat an earlier one word for word"] == [f"data.jsonl line {n}" for n in (6, 8, 9)]


def test_published_json_cases_are_judged_alike(shared: Path) -> None:
    for name, document in published_cases(shared).items():
        for line in (document, b'{"text": ' + document + b"}", b'{"text": "t", "x": ' + document + b"}"):
            assert quick(line) in (None, closely(line)), name


def test_rows_are_written_as_json_writes_them() -> None:
    signs = "".join(chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000)
    for value in ({"prompt": signs, "completion": "a"}, {"text": signs}, {"completion": "", "prompt": "\x7f\u2028"},
                  {"messages": [{"role": "user", "content": signs}]}):
        assert line_of(value) == json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize(("line", "common"), [
    (rb'{"prompt": "say \"hi\"", "completion": "\"prompt\""}', True), (rb'{"text": "\"\n"}', True),
    (rb'{"prompt": "a", "prompt": "\"b\"", "completion": "c"}', False), (rb'{"text": 1, "text": "\"b\""}', False),
    (rb'{"text": "a\\", "text": "b\\"}', False), (rb'{"prompt": "a\\", "completion": "b\\"}', True),
    (rb'{"prompt": 1, "prompt": "a\\", "completion": "b\\"}', False)])
def test_a_key_that_stands_twice_is_seen_among_quotes_in_strings(line: bytes, common: bool) -> None:
    assert (quick(line) is not None) == common
