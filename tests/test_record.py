import json
import subprocess

import pytest

from mllm_align import host
from mllm_align.record import (
    RunRecord,
    mark_killed,
    read_record,
    read_scalars,
    run_folder,
    typical_seconds,
)
from mllm_align.redact import redact, redact_overrides

RUN = {"label": "dpo-povid", "seed": 1, "key": "k1"}


def opened(root, config=None, **more):
    return RunRecord.open(root, **{**RUN, **more}, config=config or {"lr": 0.1})


def finish(root, **more):
    with opened(root, **more) as record, record.stage("train"):
        (record.folder / "metrics.json").write_text("{}")
    return record


def test_a_finished_run_is_found_by_its_key(tmp_path):
    assert RunRecord.find(tmp_path, **RUN) is None
    finish(tmp_path)
    found = RunRecord.find(tmp_path, **RUN)
    assert found is not None
    assert found.done
    assert found.folder == tmp_path / "runs" / "dpo-povid" / "seed1"
    assert RunRecord.find(tmp_path, "dpo-povid", 1, "k2") is None
    with opened(tmp_path) as again:
        assert again.done
    assert read_record(found.folder)["attempt"] == 1


def test_the_record_is_complete(tmp_path):
    overrides = ["alignment=dpo", "annotator.api_key=sk-1", "url=https://me:pw@host/x"]
    config = {"lr": 0.1, "annotator": {"api_key": "sk-1", "api_key_env": "OPENAI_KEY"}}
    with opened(tmp_path, config, overrides=overrides, axes={"alignment": "dpo"}) as record:
        record.note(headline={"f1": 84.0})
    data = read_record(record.folder)
    assert data["status"] == "finished"
    assert data["axes"] == {"alignment": "dpo"}
    assert data["overrides"] == [
        "alignment=dpo",
        "annotator.api_key=[removed]",
        "url=https://[removed]@host/x",
    ]
    assert data["headline"] == {"f1": 84.0}
    assert data["threads"] >= 1
    assert data["cores"] >= 1
    assert data["versions"]["torch"]
    assert {"host", "commit", "started", "ended", "pid"} <= data.keys()
    text = (record.folder / "config.yaml").read_text()
    assert "sk-1" not in text
    assert "api_key_env: OPENAI_KEY" in text


def test_a_finished_run_may_be_taken_up_again_and_is_sealed_anew(tmp_path):
    finish(tmp_path)
    with opened(tmp_path) as record:
        record.reopen()
        assert not record.done
        (record.folder / "metrics.json").write_text('{"more": 1}')
    found = RunRecord.find(tmp_path, **RUN)
    assert found is not None
    assert found.data["attempt"] == 2
    assert "ends_as" not in found.data


def test_a_finished_run_stays_finished_when_what_is_added_fails(tmp_path):
    finish(tmp_path)

    def add_badly(record):
        record.reopen()
        (record.folder / "half.json").write_text("1")
        raise OSError("no questions")

    with pytest.raises(OSError, match="no questions"), opened(tmp_path) as record:
        add_badly(record)
    found = RunRecord.find(tmp_path, **RUN)
    assert found is not None
    assert found.data["status"] == "finished"
    assert found.data["error"]["message"] == "no questions"
    with opened(tmp_path) as record:
        record.reopen()
    assert "error" not in RunRecord.find(tmp_path, **RUN).data


def test_an_attempt_goes_on_with_what_the_last_one_noted(tmp_path):
    """A policy that collapsed has, also if its benchmark fails and is answered by the next attempt."""

    def break_down(record):
        record.note(benchmarks={"pope": {"key": "b1"}}, dataset={"rows": 3})
        record.collapsed("one answer to everything")
        raise OSError("no questions")

    with pytest.raises(OSError, match="no questions"), opened(tmp_path) as record:
        break_down(record)
    assert read_record(record.folder)["status"] == "failed"
    with opened(tmp_path) as record:
        assert record.data["benchmarks"] == {"pope": {"key": "b1"}}
    data = read_record(record.folder)
    assert (data["status"], data["reason"]) == ("collapsed", "one answer to everything")
    assert data["dataset"] == {"rows": 3}
    assert data["attempt"] == 2
    assert "error" not in data


def test_damage_is_found_and_the_run_moved_aside(tmp_path, caplog):
    folder = finish(tmp_path).folder
    (folder / "metrics.json").write_text("[]")
    assert RunRecord.find(tmp_path, **RUN) is None
    assert "metrics.json has changed" in caplog.text
    with opened(tmp_path) as record:
        assert not record.done
        assert not (folder / "metrics.json").exists()
    assert len(list((tmp_path / "aside" / "dpo-povid").iterdir())) == 1


def test_another_config_of_the_label_is_moved_aside_not_mixed(tmp_path):
    finish(tmp_path)
    with opened(tmp_path, key="k2") as record:
        assert not (record.folder / "metrics.json").exists()
    assert (next((tmp_path / "aside" / "dpo-povid").iterdir()) / "metrics.json").exists()


def test_an_exception_is_recorded_with_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), opened(tmp_path) as record, record.stage("train"):
        1 / 0  # noqa: B018
    data = read_record(record.folder)
    assert data["status"] == "failed"
    assert data["error"]["type"] == "ZeroDivisionError"
    assert "1 / 0" in data["error"]["traceback"]
    assert data["seconds"]["train"] >= 0
    assert RunRecord.find(tmp_path, **RUN) is None


def test_ctrl_c_is_an_interruption_also_when_it_became_an_exit(tmp_path):
    def lightning_fit():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904

    with pytest.raises(SystemExit), opened(tmp_path) as record:
        lightning_fit()
    assert read_record(record.folder)["status"] == "interrupted"


def test_an_unfinished_run_is_continued_and_its_time_adds_up(tmp_path):
    def half_a_run():
        with opened(tmp_path) as record:
            record.note(seconds={"train": 100.0})
            (record.folder / "checkpoint").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_a_run()
    with opened(tmp_path) as record:
        assert (record.folder / "checkpoint").read_text() == "half"
        with record.stage("train"):
            pass
    data = read_record(record.folder)
    assert data["attempt"] == 2
    assert 100.0 <= data["seconds"]["train"] < 101.0
    assert "error" not in data


def test_a_collapsed_run_is_a_result(tmp_path):
    with opened(tmp_path) as record:
        record.collapsed("loss is NaN at step 40")
    found = RunRecord.find(tmp_path, **RUN)
    assert found is not None
    assert found.data["status"] == "collapsed"
    assert found.data["reason"] == "loss is NaN at step 40"


def test_running_without_a_process_reads_as_interrupted(tmp_path):
    with opened(tmp_path) as record:
        assert read_record(record.folder)["status"] == "running"
        kept = dict(record.data)
    (record.folder / "record.json").write_text(json.dumps({**kept, "status": "running"}))
    assert read_record(record.folder)["status"] == "interrupted"


def test_only_the_killed_process_own_record_is_marked(tmp_path):
    with opened(tmp_path) as record:
        mark_killed(record.folder, pid=record.data["pid"] + 1, reason="killed")
        assert read_record(record.folder)["status"] == "running"
        mark_killed(record.folder, pid=record.data["pid"], reason="killed by SIGKILL")
        data = read_record(record.folder)
    assert data["status"] == "failed"
    assert data["error"]["message"] == "killed by SIGKILL"


def test_scalars_are_on_disk_at_once_and_figures_may_differ(tmp_path):
    with opened(tmp_path) as record, record.scalars() as scalars:
        scalars.log(1, {"loss": 0.5, "margin": 0.1})
        assert (record.folder / "scalars.csv").read_text() == "step,name,value\n1,loss,0.5\n1,margin,0.1\n"
        scalars.log(2, {"loss": 1 / 3, "odd, name": float("nan")})
    read = read_scalars(record.folder)
    assert read["loss"] == [(1, 0.5), (2, 1 / 3)]
    assert read["odd, name"][0][0] == 2


def test_a_resumed_run_drops_the_rows_after_its_checkpoint_and_a_torn_line(tmp_path):
    with opened(tmp_path) as record:
        with record.scalars() as scalars:
            for step in (1, 2, 3):
                scalars.log(step, {"loss": step / 10})
        with (record.folder / "scalars.csv").open("a") as file:
            file.write("4,lo")
        with record.scalars(resume_step=2) as scalars:
            scalars.log(3, {"loss": 0.3})
    want = "step,name,value\n1,loss,0.1\n2,loss,0.2\n3,loss,0.3\n"
    assert (record.folder / "scalars.csv").read_text() == want


def test_typical_seconds_is_a_mean_over_the_finished_seeds(tmp_path):
    assert typical_seconds(tmp_path, "dpo-povid") is None
    for seed, seconds in {1: 10.0, 2: 20.0}.items():
        with opened(tmp_path, seed=seed) as record:
            record.note(seconds={"train": seconds, "preferences": 100.0})
    assert typical_seconds(tmp_path, "dpo-povid", without=["preferences"]) == 15.0
    assert typical_seconds(tmp_path, "dpo-povid") == 115.0


@pytest.mark.parametrize("label", ["", "a/b", "../up", ".hidden", "a b", "x" * 201])
def test_labels_that_cannot_name_a_folder_are_refused(tmp_path, label):
    with pytest.raises(ValueError, match="cannot name a folder"):
        run_folder(tmp_path, label, 0)


def test_what_is_secret_and_what_is_not():
    config = {"token": "t", "hf_token": "t", "max_new_tokens": 5, "pad_token": "<pad>", "tokenizer": "x"}
    assert redact(config) == {**config, "token": "[removed]", "hf_token": "[removed]"}
    assert redact([{"password": ""}, {"key": None}]) == [{"password": ""}, {"key": None}]
    assert redact_overrides(["+a.secret=1", "~b", "keyboard=1"]) == [
        "+a.secret=[removed]",
        "~b",
        "keyboard=1",
    ]


def test_commit_is_that_of_this_checkout():
    host.source_commit.cache_clear()
    here = host.Path(host.__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    if head.returncode or "site-packages" in here.parts:
        assert host.source_commit() is None
    else:
        assert str(host.source_commit()).partition("+")[0] == head.stdout.strip()
