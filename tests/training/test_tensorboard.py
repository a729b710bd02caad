"""The training log as TensorBoard reads it."""

import time

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipestill.training.progress import Progress
from pipestill.training.tensorboard import VERTEX_FOLDER, Scalars, tag_of


def entry(step, **more):
    return {"step": step, "label_loss": 1.0 / step, "rationale_loss": None, **more}


def read(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(item.step, round(item.value, 4)) for item in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def feed(scalars, progress, steps):
    for step in steps:
        progress.step = step
        progress.log.append(entry(step, **({"val_label_loss": 2.0} if step == 4 else {})))
        scalars.after_step(progress)


def test_every_entry_once_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VERTEX_FOLDER, str(tmp_path / "vertex"))
    with Scalars(tmp_path / "own") as scalars:
        feed(scalars, Progress(), range(1, 5))
    for folder in ("own", "vertex"):
        found = read(tmp_path / folder)
        assert found["train/label_loss"] == [(s, round(1 / s, 4)) for s in range(1, 5)]
        assert found["validation/label_loss"] == [(4, 2.0)]
        assert set(found) == {"train/label_loss", "validation/label_loss"}


def test_a_resumed_run_doubles_nothing(tmp_path):
    first = Progress()
    with Scalars(tmp_path) as scalars:
        feed(scalars, first, range(1, 4))  # step 3 came after the checkpoint of step 2
    resumed = Progress(step=2, log=first.log[:2])
    time.sleep(1.05)  # files are read in the order of their names, which hold whole seconds
    with Scalars(tmp_path) as scalars:
        feed(scalars, resumed, range(3, 6))
    assert [step for step, _ in read(tmp_path)["train/label_loss"]] == [1, 2, 3, 4, 5]


def test_a_resumed_run_in_a_new_folder_is_whole(tmp_path):
    log = [entry(1), entry(2)]
    with Scalars(tmp_path / "new") as scalars:
        feed(scalars, Progress(step=2, log=log), range(3, 5))
    assert [step for step, _ in read(tmp_path / "new")["train/label_loss"]] == [1, 2, 3, 4]


def test_tags():
    assert tag_of("val_label_accuracy") == "validation/label_accuracy"
    assert tag_of("rationale_loss") == "train/rationale_loss"
    assert tag_of("grad_norm") == "optimiser/grad_norm"
