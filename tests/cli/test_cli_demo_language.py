import json
import stat

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.cli import demo_language
from expunge.cli.biographies import FACTS_EACH, MOST_PEOPLE, biographies, sentences
from expunge.corpora import word_tokenizer
from expunge.errors import SettingError
from expunge.storage import digest_model
from job_folder import JobFolder


def test_the_lives_are_always_the_same_and_nobody_is_held_out_and_trained_on() -> None:
    train, holdout = demo_language.training_data(), demo_language.holdout_data()
    assert (len(train), len(holdout)) == (40 * FACTS_EACH, 12 * FACTS_EACH)
    assert train == biographies(40)
    assert not {row["person"] for row in train} & {row["person"] for row in holdout}
    assert len({row["person"] for row in biographies(MOST_PEOPLE)}) == MOST_PEOPLE
    assert all(row["person"] in row["question"] and row["person"] in row["answer"] for row in train)
    assert len({row["answer"] for row in train}) == len(train)


@pytest.mark.parametrize("people", [0, MOST_PEOPLE + 1])
def test_there_are_only_so_many_names(people: int) -> None:
    with pytest.raises(SettingError, match=f"from 1 to {MOST_PEOPLE}, not {people}"):
        biographies(people)


def test_every_word_of_every_life_is_in_the_vocabulary() -> None:
    tokenizer = word_tokenizer(sentences())
    for row in biographies(MOST_PEOPLE):
        read = tokenizer(f"Question: {row['question']}\nAnswer: {row['answer']}")["input_ids"]
        assert tokenizer.unk_token_id not in read


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_language, "_EPOCHS", 2)
    monkeypatch.setattr(demo_language, "_TRAINED_PEOPLE", 6)
    monkeypatch.setattr(demo_language, "_METHOD", {"name": "gradient-reversal", "repair_steps": 2})


@pytest.mark.usefixtures("quick")
def test_a_short_demo_leaves_a_run_to_work_on(jobs: JobFolder) -> None:
    result = jobs.expunge("demo", "language", "--output", jobs.output, "--oracles", "2", "--json")
    assert result.exit_code == 0, result.output
    story = json.loads(result.stdout)
    rows = demo_language.training_data()
    about = [row for row in rows if row["person"] == story["person"]]
    assert [answer["question"] for answer in story["answers"]] == [row["question"] for row in about]
    assert [answer["true"] for answer in story["answers"]] == [row["answer"] for row in about]
    assert story["evidence"]["settings"]["oracles"] == 2
    assert story["log_bytes"] > 0
    assert "discarded" not in result.stderr
    unlearned = AutoModelForCausalLM.from_pretrained(jobs.output / "model")
    assert digest_model(unlearned) == story["record"]["result_digest"]
    assert len(AutoTokenizer.from_pretrained(jobs.output / "model")) == unlearned.config.vocab_size
    assert stat.S_IMODE((jobs.output / "log" / "log.json").stat().st_mode) == 0o600
    assert jobs.expunge("report", jobs.output).exit_code == 0
    again = jobs.expunge("audit", jobs.output)
    assert again.exit_code == 0, again.output
    demo_language._clear(jobs.output)
    assert jobs.outputs() == {demo_language.FACTS_FILE}


@pytest.mark.usefixtures("quick")
def test_the_summary_shows_what_each_model_says(jobs: JobFolder) -> None:
    result = jobs.expunge("demo", "language", "--output", jobs.output, "--oracles", "2")
    assert result.exit_code == 0, result.output
    for text in ("What the models say about Nilo Brandl", "an oracle", "Verdict", "Report", "AutoModelForCausalLM"):
        assert text in result.stdout


@pytest.mark.parametrize("name", ["thesis.tex", "language.json"])
def test_the_demo_overwrites_nothing_of_the_users(jobs: JobFolder, name: str) -> None:
    jobs.output.mkdir()
    (jobs.output / name).write_text("precious", encoding="utf-8")
    result = jobs.expunge("demo", "language", "--output", jobs.output)
    assert result.exit_code == 2
    assert "not of a demonstration" in result.stderr
    assert (jobs.output / name).read_text(encoding="utf-8") == "precious"
