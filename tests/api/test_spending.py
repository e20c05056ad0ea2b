"""What was paid is known to all who share a folder, and files that others shall read can be read by them."""

from __future__ import annotations

import os

import pytest

from mllm_align.api import cache
from mllm_align.api.spending import Bill, Budget, Purse, SpendingCapReached, Usage

TEN = Usage(prompt_tokens=8, answer_tokens=2)


@pytest.mark.parametrize("rest", [b'{"model": "m", "answers": 1, "pro', b'{"model": "m"}', b"\xff\xfe"])
def test_a_line_that_a_killed_process_left_damages_no_other(tmp_path, caplog, rest) -> None:
    purse = Purse(tmp_path, "m", Budget(max_total_tokens=30))
    purse.pay(TEN)
    with purse.file.open("ab") as file:
        file.write(rest)
    purse.pay(TEN)
    other = Purse(tmp_path, "m", Budget(max_total_tokens=25))
    with pytest.raises(SpendingCapReached), other.asking():
        pass
    assert other.total == purse.total == Bill(2, 16, 4, 0.0)
    assert "is damaged; its cost is not counted" in caplog.text


def test_a_line_that_only_lacks_its_end_counts(tmp_path) -> None:
    Purse(tmp_path, "m", Budget()).pay(TEN)
    file = tmp_path / "spent.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    purse = Purse(tmp_path, "m", Budget())
    purse.pay(TEN)
    assert purse.total.answers == 2
    assert b"\n\n" not in file.read_bytes()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_an_answer_has_the_mode_that_the_umask_leaves(tmp_path, umask, mode) -> None:
    before = os.umask(umask)
    try:
        cache.write(tmp_path, "ab" * 32, {"answer": "A"})
    finally:
        os.umask(before)
    assert cache.path(tmp_path, "ab" * 32).stat().st_mode & 0o777 == mode
    assert cache.read(tmp_path, "ab" * 32) == {"answer": "A"}
    assert [file.name for file in (tmp_path / "ab").iterdir()] == ["ab" * 32 + ".json"]
