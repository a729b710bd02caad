"""Half-written and flipped state, a full disk, a folder that may not be written.

Every run ends like an undisturbed one, or stops with one clear line; what was good before it stays.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.kill_test import make_model, make_rows
from benchmarks.soak import children
from benchmarks.soak.tally import Tally
from pipestill.config import TeacherConfig, TrainConfig
from pipestill.generation.journal import Journal
from pipestill.generation.teacher import Completion
from pipestill.records import Example, write_jsonl
from pipestill.training import checkpoint as checkpoints

STEPS, INTERVAL = 40, 5
FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "best.safetensors",
         "state.json")  # fmt: skip


def run(
    folder: Path, dice: random.Random, tally: Tally, minutes: float, flips: int = 300
) -> None:  # fmt: skip
    """The whole group."""
    torch.set_num_threads(1)
    damaged_checkpoints(folder / "training", dice, tally)
    flipped_bits(folder / "flips", dice, tally, flips)
    cut_journal(folder / "journal", tally)
    cut_ledger(folder / "ledger", tally)
    half_written_store(folder / "store", dice, tally)
    limited_files(folder / "limits", dice, tally)
    with small_disk(folder / "disk") as disk:
        if disk is None:
            tally.facts["full disk"] = "by a limit on files alone (a small disk needs root)"
        else:
            full_disk(folder, disk, tally)
            full_disk_run(folder, disk, tally)
            read_only(folder, disk, tally)


# --- training --------------------------------------------------------------------------------


def train(base: Path, out: Path, state: Path | str) -> Any:
    """A tiny T5 with dropout, forty steps."""
    from pipestill.training.student import train_student

    torch.set_num_threads(1)
    config = TrainConfig(
        student_model_reference=str(base / "model"), train_steps=STEPS, batch_size=4,
        checkpoint_interval=INTERVAL, evaluation_interval=10, enable_early_stopping=False,
        precision="fp32",
    )  # fmt: skip
    return train_student(base / "rows.jsonl", out, run="dss:0", state_dir=str(state), config=config)


def make_inputs(base: Path) -> Path:
    """Model and rows."""
    base.mkdir(parents=True, exist_ok=True)
    make_model(base / "model")
    write_jsonl(base / "rows.jsonl", make_rows(48))
    return base


def weights(out: Path) -> bytes:
    """The trained weights, as they lie on disk."""
    return (out / "model.safetensors").read_bytes()


def interrupted(base: Path, step: int) -> Path:
    """A state folder as a kill after so many steps leaves it."""
    state = base / "state"
    child = children.Child(lambda: train(base, base / "lost", state), base / "lost.log")
    while not list(state.glob(f"checkpoints/*/step-{step:06d}/state.json")):
        assert child.running(), child.end().told
        time.sleep(0.002)
    child.kill()
    child.end()
    return state


def damaged_checkpoints(base: Path, dice: random.Random, tally: Tally) -> None:
    """Each file of the newest checkpoint in turn, then both checkpoints, then strangers."""
    make_inputs(base)
    calm = children.call(lambda: train(base, base / "calm", ""), base / "calm.log")
    if calm.code:
        tally.fault("checkpoint: undisturbed run", False, calm.told)
        return
    wanted, state = weights(base / "calm"), interrupted(base, 20)
    hurts: dict[str, Callable[[Path], Any]] = {}
    for name in FILES:
        hows = ["cut", "flipped", "emptied", "removed"]
        for how in hows if name == "state.json" else dice.sample(hows, 2):
            hurts[f"{name} {how}"] = lambda run, n=name, h=how: hurt(newest(run) / n, h, dice)
    hurts |= {
        "both torn": lambda run: [hurt(p / "state.json", "removed", dice) for p in steps(run)],
        "all flipped": lambda run: [hurt(p / n, "flipped", dice) for p in steps(run)
                                    for n in FILES],
        "a folder named step-xyz": lambda run: (run / "step-xyz").mkdir(),
        "a file named step-999999": lambda run: (run / "step-999999").write_bytes(b"x"),
        "a marker of brackets": lambda run: (newest(run) / "state.json").write_text("[" * 100_000),
        "a pickle as weights": lambda run: (newest(run) / FILES[0]).write_bytes(b"\x80\x04K\x01."),
        "names that lead outside": outside,
    }  # fmt: skip
    for number, (what, how) in enumerate(hurts.items()):
        place = base / f"again-{number}"
        shutil.copytree(state, place)
        (run_folder,) = (place / "checkpoints").glob("*/")
        how(run_folder)
        out = base / f"out-{number}"
        outcome = children.call(
            lambda s=place, o=out: train(base, o, s), base / f"again-{number}.log"
        )
        same = outcome.code == 0 and weights(out) == wanted
        resumed = outcome.value["resumed_from_step"] if outcome.code == 0 else "-"
        tally.fault(f"checkpoint: {what}", same, f"resumed from step {resumed}; {outcome.told}")


def steps(run_folder: Path) -> list[Path]:
    return sorted(run_folder.glob("step-0*"))


def newest(run_folder: Path) -> Path:
    return steps(run_folder)[-1]


def hurt(path: Path, how: str, dice: random.Random) -> None:
    """Damages one file."""
    if not path.exists():
        return
    data = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
        return
    if how == "flipped":
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(bytes(data[: dice.randrange(1, len(data))] if how == "cut" else
                           b"" if how == "emptied" else data))  # fmt: skip


def outside(run_folder: Path) -> None:
    """A marker that names a file in another folder."""
    path = newest(run_folder) / "state.json"
    marker = json.loads(path.read_text(encoding="utf-8"))
    marker["digests"]["../../../../rows.jsonl"] = "0" * 64
    path.write_text(json.dumps(marker), encoding="utf-8")


def flipped_bits(folder: Path, dice: random.Random, tally: Tally, count: int) -> None:
    """One bit anywhere in the newest checkpoint: it is passed over for the one before."""
    tensors = {"model": {"w": torch.arange(50.0)}, "random": {"cpu-0": torch.arange(20)}}
    for step in (1, 2):
        point = checkpoints.Checkpoint({"step": step, "log": [{"loss": step / 7}]}, tensors)
        checkpoints.save(folder, step, point)
    files = sorted((folder / "step-000002").iterdir())
    failed = []
    with quiet():
        for _ in range(count):
            path = dice.choice(files)
            whole = path.read_bytes()
            at, bit = dice.randrange(len(whole)), dice.randrange(8)
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            try:
                found = checkpoints.latest(folder)
                same = whole_state(found, 2) and path.name == "state.json"  # white space only
                if found is None or not (found.state["step"] == 1 or same):
                    failed.append(f"{path.name}, byte {at}, bit {bit}: taken as sound")
            except Exception as error:
                failed.append(f"{path.name}, byte {at}, bit {bit}: {error!r}")
            path.write_bytes(whole)
    tally.faults("checkpoint: one bit flipped", count, failed)


def whole_state(found: Any, step: int) -> bool:
    return found is not None and found.state == {"step": step, "log": [{"loss": step / 7}]}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The lines about checkpoints that are passed over are not shown."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
        yield


# --- journal, ledger, store ------------------------------------------------------------------


def cut_journal(folder: Path, tally: Tally) -> None:
    """The journal cut at every byte of its last record: the others are found, and it goes on."""
    answers = [(f"k{n}", f"r{n}", Completion(text=f"Grün {n} \n", prompt_tokens=1,
                                             output_tokens=2)) for n in range(5)]  # fmt: skip
    with Journal(str(folder / "whole")) as journal:
        journal.append(answers)
    (segment,) = (folder / "whole" / "journal").glob("segment-*")
    data = segment.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    failed = []
    for at in range(last, len(data)):
        place = folder / f"cut-{at}" / "journal"
        place.mkdir(parents=True)
        (place / segment.name).write_bytes(data[:at])
        with Journal(str(place.parent)) as journal:
            found = journal.find([key for key, _, _ in answers])
            journal.append([answers[4]] if "k4" not in found else [])
            again = journal.find([key for key, _, _ in answers])
        sound = {key: value for key, _, value in answers}
        whole = at == len(data) - 1
        if len(found) != 4 + whole or any(sound[k] != v for k, v in found.items()):
            failed.append(f"byte {at}: found {sorted(found)}")
        if again != sound:
            failed.append(f"byte {at}: after going on, found {sorted(again)}")
        shutil.rmtree(place.parent)
    tally.faults("journal cut", len(data) - last, failed)


def cut_ledger(folder: Path, tally: Tally) -> None:
    """The ledger of promotions cut within its last line: refused, because a cut line is a changed
    one; it names the line."""
    from pipestill.cloud import ledger
    from pipestill.errors import UserError

    path = folder / "ledger.jsonl"
    for number in range(3):
        ledger.append(str(path), {"tick": f"t{number}"})
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    failed = []
    for at in range(last + 1, len(data) - 1):
        path.write_bytes(data[:at])
        try:
            ledger.append(str(path), {"tick": "again"})
            failed.append(f"byte {at}: went on")
        except UserError as error:
            if "line 3" not in str(error) or path.read_bytes() != data[:at]:
                failed.append(f"byte {at}: {error}")
    path.write_bytes(data)
    if len(ledger.read(str(path))) != 3:
        failed.append("whole again, and not read")
    tally.faults("ledger cut", len(data) - last - 2, failed)


def half_written_store(folder: Path, dice: random.Random, tally: Tally) -> None:
    """Shards of the teacher's probabilities that were cut, flipped or lost."""
    from pipestill.errors import UserError
    from pipestill.generation.logits_shard import StoredRow, kept_shard, shard_name, write_shard
    from pipestill.generation.logits_store import close_store, open_store

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    entries = []
    for number in range(3):
        rows = [StoredRow(torch.arange(4), torch.arange(8).view(4, 2), torch.rand(4, 2) - 1,
                          torch.rand(4) - 1, f"s{number}-{n}") for n in range(3)]  # fmt: skip
        entries.append(write_shard(folder / shard_name(number), rows, 100))
    victim = folder / shard_name(1)
    whole, failed = victim.read_bytes(), []
    damage = [whole[:at] for at in dice.sample(range(len(whole)), 20)]
    damage += [bytes(flip(whole, dice)) for _ in range(20)]
    for data in damage:
        victim.write_bytes(data)
        if kept_shard(victim) is not None:
            failed.append("a damaged shard was kept")
    victim.write_bytes(whole)
    facts = {"tau": 1.0, "targets": "label", "vocabulary_digest": "x", "vocabulary_size": 100}
    close_store(folder, entries, k=2, **facts)
    for data in damage:
        victim.write_bytes(data)
        try:
            open_store(folder).rows([f"s1-{n}" for n in range(3)])
            failed.append("a damaged store was read")
        except UserError as error:
            if "\n" in str(error) or victim.name not in str(error):
                failed.append(str(error))
        except Exception as error:
            failed.append(repr(error))
    tally.faults("logits shard damaged", 2 * len(damage), failed)


def flip(data: bytes, dice: random.Random) -> bytearray:
    """One bit changed."""
    found = bytearray(data)
    found[dice.randrange(len(found))] ^= 1 << dice.randrange(8)
    return found


# --- full and read-only ----------------------------------------------------------------------


def writers(base: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """Steps that write, each into `out`."""
    from pipestill.generation.label import label_shard

    rows = [Example(id=f"r{n}", input_text=f"is {n} so?", source_row=n) for n in range(300)]
    if not (base / "examples.jsonl").exists():
        write_jsonl(base / "examples.jsonl", rows)
        texts = [f"It is about {n}. So the answer is a{n}." for n in range(300)]
        (base / "recorded.json").write_text(json.dumps(texts), encoding="utf-8")
        lines = [json.dumps({"input_text": f"q {n}", "output_text": "x"}) for n in range(3000)]
        (base / "raw.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = TeacherConfig(backend="replay", replay_uri=str(base / "recorded.json"),
                           prompt="svamp.v1", audit_rows=0, min_success=0.0)  # fmt: skip
    examples = str(base / "examples.jsonl")

    def prepared() -> Any:
        from benchmarks.soak.data import prepared as prepare

        return prepare(base / "raw.jsonl", out / "prepared")

    return {
        "training": lambda: train(base, out / "student", out / "state"),
        "labelling": lambda: label_shard(
            examples, examples, str(out / "labelled.jsonl"), shard="0/1",
            state_dir=str(out / "state"), config=config,
        ),
        "data preparation": prepared,
        "ledger": lambda: append_ledger(out / "ledger.jsonl"),
    }  # fmt: skip


def append_ledger(path: Path) -> None:
    from pipestill.cloud import ledger

    for number in range(100):
        ledger.append(str(path), {"tick": f"t{number}", "why": "x" * 2000})


def limited_files(folder: Path, dice: random.Random, tally: Tally) -> None:
    """No file may grow beyond a limit, as on a full disk; then it may, and all goes on."""
    base = make_inputs(folder / "inputs")
    for name in writers(base, folder):
        failed, count = [], 5
        for number in range(count):
            out = folder / name / str(number)
            out.mkdir(parents=True)
            limit = dice.choice((1, 500, 4_000, 20_000, 60_000))
            work = writers(base, out)[name]
            short = children.call(work, out.with_suffix(".log"),
                                  limits={resource.RLIMIT_FSIZE: limit})  # fmt: skip
            if not short.clear:
                failed.append(f"{limit} bytes: {short.told}")
            again = children.call(work, out.with_suffix(".log"))
            if again.code:
                failed.append(f"after {limit} bytes: {again.told}")
        tally.faults(f"file size limit: {name}", count, failed)


def _mount(*command: str) -> bool:
    """Whether a command of root's worked."""
    return subprocess.run(command, capture_output=True).returncode == 0  # noqa: S603


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of three megabytes; None where it cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or not _mount("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)):
        yield None
        return
    try:
        yield folder
    finally:
        _mount("umount", "-l", str(folder))


def full_disk(folder: Path, disk: Path, tally: Tally) -> None:
    """Each writer on a disk with almost no room; with room again it goes on."""
    base = make_inputs(folder / "disk-inputs")
    for name in writers(base, folder):
        for room in (0, 30_000, 200_000):
            out = disk / "out"
            out.mkdir()
            (disk / "filler").write_bytes(b"0" * (3 * 1024 * 1024 - room))
            work = writers(base, out)[name]
            short = children.call(work, folder / f"full-{name}.log")
            (disk / "filler").unlink()
            again = children.call(work, folder / f"full-{name}.log")
            tally.fault(f"full disk: {name}, {room} bytes left", short.clear and again.code == 0,
                        f"{short.told}; then {again.told}")  # fmt: skip
            shutil.rmtree(out)


def full_disk_run(folder: Path, disk: Path, tally: Tally) -> None:
    """A whole local run on a full disk: one line; the same command goes on once there is room."""
    import yaml

    from benchmarks.soak.tiny_pipelines import Place, batch_predict

    given = batch_predict(Place(folder / "run-inputs", folder / "run", {}))
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({**given, "shards": ["0/1"]}), encoding="utf-8")
    command = ["-m", "pipestill.cli.main", "run", "batch_predict", "-c", str(config), "--out",
               str(disk / "run")]  # fmt: skip
    for room in (0, 12_000):
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            for _ in range(3 * 256 - room // 4096):  # the disk counts pages of 4 KiB
                filler.write(b"0" * 4096)
        short = children.command(command)
        (disk / "filler").unlink()
        again = children.command(command)
        fine = short.clear and short.code != 0 and again.code == 0
        tally.fault(f"full disk: a whole run, {room} bytes left", fine,
                    f"{_error(short)}; then {again.told}")  # fmt: skip
        shutil.rmtree(disk / "run", ignore_errors=True)


def _error(done: children.Finished) -> str:
    """The line of its error, else its last one."""
    lines = [line for line in done.output.splitlines() if line.startswith("error ")]
    return lines[0] if lines else done.told


def read_only(folder: Path, disk: Path, tally: Tally) -> None:
    """Each writer on a disk that may only be read."""
    base = folder / "disk-inputs"
    (disk / "out").mkdir()
    _mount("mount", "-o", "remount,ro", str(disk))
    for name, work in writers(base, disk / "out").items():
        outcome = children.call(work, folder / f"ro-{name}.log")
        clear = outcome.clear and outcome.code != 0
        tally.fault(f"read-only: {name}", clear, outcome.told)
    _mount("mount", "-o", "remount,rw", str(disk))
