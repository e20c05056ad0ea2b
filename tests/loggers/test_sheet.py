"""`logger=csv` and `logger=none`."""

import pytest

from mllm_align.loggers.sheet import sheet
from mllm_align.loggers.silent import silent
from mllm_align.record import RunRecord


def test_one_row_a_step_and_one_column_a_figure_however_the_run_ends(tmp_path):
    with RunRecord(tmp_path, {}).scalars() as scalars:
        scalars.log(1, {"loss": 0.5, "lr": 1e-3})
        scalars.log(2, {"loss": 0.25})

    def broken() -> None:
        with sheet({"folder": tmp_path}) as logger:
            logger.log(3, {"loss": 0.125})  # the record, not the logger, is what is read
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert (tmp_path / "scalars_wide.csv").read_text() == "step,loss,lr\n1,0.5,0.001\n2,0.25,\n"


def test_nothing_is_written_without_scalars_or_without_a_logger(tmp_path):
    for logger_of in (sheet, silent):
        with logger_of({"folder": tmp_path}) as logger:
            logger.summarise({"f1": 1.0})
    assert not list(tmp_path.iterdir())
