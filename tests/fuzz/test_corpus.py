"""Bad input of every kind ends in one line, quickly, and leaves nothing behind: a sample of the corpus.

`python3 dev.py fuzz` runs all of it.
"""

from cases import CORPUS, cases
from run import outcomes, unexpected


def test_the_corpus_has_hundreds_of_cases_of_every_kind():
    found = cases()
    kinds = {case.kind for case in found}
    assert kinds == {path.stem for path in CORPUS.glob("*.jsonl")}
    assert len(found) >= 500
    assert all(sum(case.kind == kind for case in found) >= 20 for kind in kinds)
    assert all(bool(case.run) != bool(case.call) for case in found)


def test_a_sample_of_the_corpus(in_full: bool):
    sample = [case for case in cases() if case.sample][:: 1 if in_full else 2]
    assert {case.kind for case in sample} == {path.stem for path in CORPUS.glob("*.jsonl")}
    assert [
        (case.id, outcome.status, outcome.detail) for case, outcome in outcomes(sample) if unexpected(case, outcome)
    ] == []
