"""Text from files, benchmarks, free text and tokenisers; and forgetting an edge of a graph of contracts."""

import json
import os
from pathlib import Path
from typing import Any

import datasets as hf
import pytest
import torch

from expunge import CausalLM, split
from expunge.corpora import (
    Pistol,
    Tofu,
    byte_tokenizer,
    data_folder,
    occurrences,
    read_hugging_face,
    read_json_lines,
    word_tokenizer,
)
from expunge.errors import DataError, ForgetSetError, SettingError, SourceError

REAL = pytest.mark.skipif(
    "EXPUNGE_DATA_DIR" not in os.environ, reason="set EXPUNGE_DATA_DIR to the folder of real data"
)


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"question {number}?", "answer": f"answer {number}.", **more} for number in range(count)]


def test_lines_are_read_and_checked(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", asked(3))
    assert read_json_lines(path, {"question": str}) == asked(3)
    path.write_text('{"question": "a secret", "answer": 3}\n\n{"question"\n')
    with pytest.raises(SourceError, match=r"line 3 of .* is no JSON") as failure:
        read_json_lines(path)
    assert "secret" not in str(failure.value)
    assert failure.value.__cause__ is None
    path.write_text('{"question": "a secret", "answer": 3}\n')
    with pytest.raises(SourceError, match=r"line 1 of .*: 'answer' must be a str, not a int") as failure:
        read_json_lines(path, {"answer": str})
    with pytest.raises(SourceError, match=r"line 1 of .* has no field 'text'; it has question, answer"):
        read_json_lines(path, ["text"])
    path.write_text("[1]\n")
    with pytest.raises(SourceError, match="is a list; a JSON object is needed"):
        read_json_lines(path)
    path.write_text("\n")
    with pytest.raises(SourceError, match="is empty"):
        read_json_lines(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SourceError, match="is not UTF-8 text"):
        read_json_lines(path)
    with pytest.raises(SourceError, match="cannot be read"):
        read_json_lines(tmp_path / "absent.jsonl")


def test_only_line_feeds_part_lines(tmp_path: Path) -> None:
    rows = [{"text": f"one{mark}two"} for mark in "\u2028\u2029\x85"]
    path = tmp_path / "rows.jsonl"
    for end in ("\n", "\r\n"):
        path.write_bytes(end.join(json.dumps(row, ensure_ascii=False) for row in [*rows, {"text": "last"}]).encode())
        assert read_json_lines(path) == [*rows, {"text": "last"}]
    path.write_bytes(b'{"text": "one\xe2\x80\xa8two"}\n\n{"text"\n')
    with pytest.raises(SourceError, match="line 3 of"):
        read_json_lines(path)


def test_a_benchmark_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPUNGE_DATA_DIR", raising=False)
    with pytest.raises(SourceError, match="where is tofu"):
        data_folder("tofu")
    monkeypatch.setenv("EXPUNGE_DATA_DIR", str(tmp_path))
    with pytest.raises(SourceError, match="there is no folder"):
        Tofu.read()


def test_tofu_numbers_its_authors_and_finds_its_forget_sets(tmp_path: Path) -> None:
    full = asked(60)
    lines(tmp_path / "full.json", full)
    lines(tmp_path / "forget05.json", full[40:])
    lines(
        tmp_path / "retain_perturbed.json",
        asked(2, paraphrased_answer="a", paraphrased_question="q", perturbed_answer=["w"]),
    )
    lines(tmp_path / "world_facts_perturbed.json", asked(2))
    (tmp_path / "idontknow.jsonl").write_text("I do not know.\n\nNo idea.\n")
    tofu = Tofu.read(tmp_path)
    assert tofu.authors == ["000", "001", "002"]
    assert tofu.forget(5).tolist() == list(range(40, 60))
    assert torch.equal(split(tofu.rows, column_is=("author", ["002"])).indices, tofu.forget(5))
    assert len(tofu.perturbed("retain")) == 2
    assert tofu.refusals() == ("I do not know.", "No idea.")
    with pytest.raises(SourceError, match="no field 'perturbed_answer'"):
        tofu.perturbed("world_facts")
    lines(tmp_path / "forget01.json", asked(70)[59:62])
    with pytest.raises(SourceError, match="2 of 3 rows"):
        tofu.forget(1)
    lines(tmp_path / "full.json", asked(61))
    with pytest.raises(SourceError, match="61 rows"):
        Tofu.read(tmp_path)


def contracts(tmp_path: Path) -> Pistol:
    edges = ["A_B", "A_C", "B_D", "E_F"]
    rows = [{"edge": edge, **row} for edge in edges for row in asked(2)]
    (tmp_path / "pistol_sample1.json").write_text(json.dumps(rows))
    return Pistol.read(tmp_path)


def test_an_edge_is_forgotten_and_its_neighbours_are_known(tmp_path: Path) -> None:
    pistol = contracts(tmp_path)
    assert pistol.edges == ["A_B", "A_C", "B_D", "E_F"]
    assert pistol.on(["A_B", "E_F"]).tolist() == [0, 1, 6, 7]
    assert pistol.neighbours(["A_B"]) == ["A_C", "B_D"]
    assert pistol.distant(["A_B"]) == ["E_F"]
    assert pistol.neighbours(["A_C", "A_B"]) == ["B_D"]
    parts = split(pistol.rows, indices=pistol.on(["A_B"]))
    assert (len(parts.forget), len(parts.retain)) == (2, 6)
    with pytest.raises(ForgetSetError, match="there is no contract A_D; there are A_B"):
        pistol.on(["A_D"])
    with pytest.raises(ForgetSetError, match="none was named"):
        pistol.neighbours([])
    for content, message in (("{", "is no JSON"), ("{}", "a JSON list of objects"), ('[{"edge": "AB"}]', "no field")):
        (tmp_path / "pistol_sample1.json").write_text(content)
        with pytest.raises(SourceError, match=message):
            Pistol.read(tmp_path)
    (tmp_path / "pistol_sample1.json").write_text('[{"edge": "AB", "question": "q", "answer": "a"}]')
    with pytest.raises(SourceError, match="two parties"):
        Pistol.read(tmp_path)


def test_hugging_face_datasets_are_renamed(tmp_path: Path) -> None:
    rows = [{"prompt": row["question"], "response": row["answer"]} for row in asked(3)]
    hf.Dataset.from_list(rows).save_to_disk(str(tmp_path / "one"))
    hf.DatasetDict({"train": hf.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "parts"))
    for name in ("one", "parts"):
        found = read_hugging_face(tmp_path / name, columns={"prompt": "question", "response": "answer"})
        assert found[1] == {"question": "question 1?", "answer": "answer 1."}
    with pytest.raises(SourceError, match="has no column text; it has prompt, response"):
        read_hugging_face(tmp_path / "one", columns={"text": "question"})
    with pytest.raises(SourceError, match="has no split 'test'; it has train"):
        read_hugging_face(tmp_path / "parts", "test")


def test_free_text_is_found_without_case_accents_and_spaces() -> None:
    rows = [
        {"question": "Who is José  Núñez?", "answer": "A baker."},
        {"question": "Who lives there?", "answer": "JOSE\nNUNEZ does."},
        {"question": "And Josephine?", "answer": "Elsewhere."},
        {"question": "Ａｎｎ?", "answer": "she"},
    ]
    assert occurrences(rows, "jose nunez").tolist() == [0, 1]
    assert occurrences(rows, ["Jose", "ann"]).tolist() == [0, 1, 3]
    assert occurrences(rows, "jose", whole_words=False).tolist() == [0, 1, 2]
    assert occurrences(rows, "jose nunez", fields=["answer"]).tolist() == [1]
    assert occurrences([("Who?", "Ann."), ("Who?", "Bob.")], "bob.").tolist() == [1]
    assert len(occurrences(["nobody"], "ann")) == 0
    with pytest.raises(SettingError, match="none of them empty"):
        occurrences(rows, ["ann", " "])
    with pytest.raises(DataError, match="holds no text"):
        occurrences([{"n": 3}], "ann")


TEXTS = [f"{row['question']} {row['answer']}" for row in asked(20)] + ["An odd word: ünïcode!"]


def test_bytes_write_any_text_and_words_those_they_know() -> None:
    whole, words = byte_tokenizer(TEXTS, most=400, context=64), word_tokenizer(TEXTS, context=64)
    for text in (*TEXTS, "Something — nobody wrote\n before: 漢字"):
        assert whole.decode(whole(text)["input_ids"]) == text
    for text in TEXTS:
        assert words.decode(words(text)["input_ids"]) == text
    assert "<unknown>" in words.decode(words("unheard")["input_ids"])
    for made in (whole, words):
        assert (made.pad_token, made.eos_token, made.model_max_length) == ("<pad>", "<end>", 64)
        row = CausalLM(made).tokenized(asked(1)).dataset[0]
        assert int((row["labels"] != -100).sum()) >= 4
    assert byte_tokenizer(TEXTS, most=400).get_vocab() == whole.get_vocab(), "the same corpus, the same tokens"
    with pytest.raises(SettingError, match="no text"):
        word_tokenizer([" "])
    with pytest.raises(SettingError, match="above 258"):
        byte_tokenizer(TEXTS, most=100)


@REAL
@pytest.mark.data
def test_the_published_files() -> None:
    tofu = Tofu.read()
    assert (len(tofu.rows), len(tofu.authors)) == (4000, 200)
    for percent, authors in ((1, 2), (5, 10), (10, 20)):
        assert len({tofu.rows[place]["author"] for place in tofu.forget(percent).tolist()}) == authors
    assert {part: len(tofu.perturbed(part)) for part in ("forget10", "retain", "real_authors", "world_facts")} == {
        "forget10": 400,
        "retain": 400,
        "real_authors": 100,
        "world_facts": 117,
    }
    assert [len(Pistol.read(sample=sample).edges) for sample in (1, 2)] == [20, 75]
