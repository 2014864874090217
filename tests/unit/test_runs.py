"""Facts of the latest run of a stage."""

from pinspect.core.runs import read_run_facts, write_run_facts


def test_the_facts_of_a_run_come_back_and_replace_earlier_ones(tmp_path):
    write_run_facts(tmp_path, "train", {"seconds": 1.5, "device": "CPU"})
    write_run_facts(tmp_path, "train", {"seconds": 2.0})
    assert read_run_facts(tmp_path, "train") == {"seconds": 2.0}
    assert [path.name for path in (tmp_path / "build/runs").iterdir()] == ["train.json"]


def test_missing_or_broken_facts_are_no_facts(tmp_path):
    assert read_run_facts(tmp_path, "answer") == {}
    (tmp_path / "build/runs").mkdir(parents=True)
    for text in ("{", "[1]", "\N{REPLACEMENT CHARACTER}"):
        (tmp_path / "build/runs/answer.json").write_text(text, encoding="utf-8")
        assert read_run_facts(tmp_path, "answer") == {}
