"""``kill -9`` in every step of every local pipeline, and of the runner itself; then on again.

Each pipeline is run once in peace. Then it is run with the same command again and again: the first
time a step runs, its process is killed at a random moment and the runner repeats it; the second
time the runner and all of its steps are, or the runner alone, whose step lives on. The end is
compared: weights bit for bit, rows, summary but for times.
"""

import contextlib
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak.hostile import Page
from benchmarks.soak.outcome import differences, rows_of
from benchmarks.soak.served import BadTeacher
from benchmarks.soak.tally import Tally
from benchmarks.soak.tiny_pipelines import CONFIGURATIONS, Place

STARTED = re.compile(r"^ *[\d.]+ s  (\S.*): started$")
AGAIN = re.compile(r"^ *[\d.]+ s  (\S.*): killed by signal 9; started again")
ENDED = re.compile(r"^ *[\d.]+ s  (\S.*): (?:done in ([\d.]+) s|cached)$")
AT_ONCE = 2  # pipelines side by side
AGAIN_AT_MOST = 3  # more runs for steps that are over too soon to be hit
PATIENCE_S = 300.0  # without a line from a runner: a hang


def run(
    folder: Path, dice: random.Random, tally: Tally, minutes: float, only: tuple[str, ...] = ()
) -> None:
    """The whole group."""
    from pipestill.pipelines import PIPELINES

    deadline = time.monotonic() + minutes * 60
    names = [name for name in PIPELINES if not only or name in only]
    for name in names:
        if name not in CONFIGURATIONS:
            tally.facts[f"{name}"] = "NOT COVERED (no tiny configuration)"
    covered = [name for name in CONFIGURATIONS if name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tasks = [
            pool.submit(one, name, folder / name, random.Random(dice.random()), tally, deadline)  # noqa: S311
            for name in covered
        ]
    hit = {name: task.result() for name, task in zip(covered, tasks, strict=True)}
    steps = sum(total for _, total in hit.values())
    tally.facts["steps"] = (
        f"{sum(done for done, _ in hit.values())} of {steps} steps of {len(covered)} pipelines hit"
    )


def one(
    name: str, folder: Path, dice: random.Random, tally: Tally, deadline: float
) -> tuple[int, int]:
    """One pipeline: in peace, disturbed, compared. Returns steps hit, and steps there are."""
    try:
        return _one(name, folder, dice, tally, deadline)
    except Exception as error:
        tally.fault(f"kill: {name}", False, f"{type(error).__name__}: {error}")
        return 0, 1


def _one(
    name: str, folder: Path, dice: random.Random, tally: Tally, deadline: float
) -> tuple[int, int]:
    with BadTeacher(folder / "teacher", name, 0.0) as teacher:
        calm = Case(name, folder / "calm", folder, teacher)
        watched = Watch(calm, dice, tally, deadline)
        if not watched.finish():
            return 0, 1
        asked = len(teacher.requests())
        disturbed = Case(name, folder / "killed", folder, teacher)
        killer = Watch(disturbed, dice, tally, deadline, watched.seconds)
        done = killer.finish()
        wanted = {step_of(label) for label in watched.seconds}
        hit = killer.hit & wanted
        if done:
            compare(name, calm.out, disturbed.out, tally, teacher, asked, killer)
        for turn in range(AGAIN_AT_MOST):  # some ended in the moment of the kill: at once, then
            if not done or hit >= wanted:
                break
            more = Case(name, folder / f"again-{turn}", folder, teacher)
            only = frozenset(wanted - hit)
            second = Watch(more, dice, tally, deadline, watched.seconds, only=only)
            if second.finish():
                hit |= second.hit & wanted
                killer.kills += second.kills
                found = differences(calm.out, more.out)
                tally.fault(f"kill: {name}, end {turn + 2}", not found, "; ".join(found[:4]))
        for step in sorted(wanted - hit):
            tally.fault(f"kill: {name}", False, f"{step} was never hit")
        page = disturbed.out / "report.html"
        if page.is_file():
            found = Page(page.read_text(encoding="utf-8")).bad
            tally.fault(f"page of {name} holds nothing that runs", not found, ", ".join(found[:3]))
        kills = killer.kills
        tally.facts[name] = (
            f"{len(hit)} of {len(wanted)} steps hit; killed: {kills['step']} steps, "
            f"{kills['runner']} runners with their steps, {kills['alone']} runners alone"
        )
        return len(hit), len(wanted)


def step_of(label: str) -> str:
    """``student_train`` of ``student_train dss:0``."""
    return label.split()[0]


@dataclass
class Case:
    """One folder of runs of one pipeline."""

    name: str
    out: Path
    folder: Path
    teacher: BadTeacher

    def command(self) -> list[str]:
        """The same command each time."""
        import yaml

        path = self.out.with_name(f"{self.out.name}.yaml")
        if not path.exists():
            given = {
                "teacher_backend": "openai", "teacher_prompt": str(self.teacher.prompt),
                "teacher_base_url": f"http://127.0.0.1:{self.teacher.port}/v1",
                "teacher_api_key_env": "PIPESTILL_SOAK_NO_KEY",
            }  # fmt: skip
            place = Place(self.folder / "inputs", self.out, given)
            path.parent.mkdir(parents=True, exist_ok=True)
            made = CONFIGURATIONS[self.name](place)
            path.write_text(yaml.safe_dump(made), encoding="utf-8")
        return [sys.executable, "-m", "pipestill.cli.main", "run", self.name, "-c", str(path),
                "--out", str(self.out)]  # fmt: skip


@dataclass
class Watch:
    """Runs a case to its end, killing on the way where `seconds` says how long steps take."""

    case: Case
    dice: random.Random
    tally: Tally
    deadline: float
    expected: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    only: frozenset[str] = frozenset()  # steps to kill at once; none = all, at any moment
    hit: set[str] = field(default_factory=set)  # steps whose process was killed
    cut: set[str] = field(default_factory=set)  # steps during which the runner was killed
    kills: Counter[str] = field(default_factory=Counter)
    waiting: list[tuple[str, str]] = field(default_factory=list)  # faults that are not judged yet
    in_flight: int = 0
    last: list[str] = field(default_factory=list)

    def finish(self) -> bool:
        """Repeats the command until it is done; False where it failed."""
        for _ in range(200):
            code = self._attempt()
            told = "".join(self.last[-3:])
            if code == 0:
                self._judge(True, "")
                return True
            if code is None:
                continue  # we killed the runner
            if "RUN_BUSY" in told:
                time.sleep(0.5)  # a step of the killed runner lives on and holds the folder
                continue
            self._judge(False, told)
            self.tally.fault(f"kill: {self.case.name}", False, f"ended with {code}: {told}")
            return False
        return False

    def _judge(self, survived: bool, told: str) -> None:
        """Faults that wait for the runner to go on."""
        for what, detail in self.waiting:
            self.tally.fault(what, survived, detail if survived else told)
        self.waiting.clear()

    def _attempt(self) -> int | None:
        """One run of the command: its exit code, None where the runner was killed."""
        runner = subprocess.Popen(  # noqa: S603 (our own command)
            self.case.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(runner, lines), daemon=True).start()
        plans: dict[str, tuple[float, str]] = {}
        heard = time.monotonic()
        self.last = []
        while True:
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=0.02)
                heard = time.monotonic()
                if line is None:
                    return runner.wait()
                self.last.append(line)
                self._plan(line, plans)
            now = time.monotonic()
            for step, (due, how) in list(plans.items()):
                if now < due:
                    continue
                victims = processes_of(self.case.out, step)
                if victims or not self.only:  # without victims it ended in this very moment
                    del plans[step]
                if victims and self._strike(step, how, victims, runner):
                    return None
            if now - heard > PATIENCE_S or now > self.deadline + 60:
                self._kill_all(runner)
                self.last.append("no line for too long, or out of time")
                return 124

    def _plan(self, line: str, plans: dict[str, tuple[float, str]]) -> None:
        if ended := ENDED.match(line):
            step = step_of(ended[1])
            plans.pop(step, None)
            if ended[2]:
                self.seconds[ended[1]] = float(ended[2])
            self._judge(True, "")
            return
        begun = STARTED.match(line) or AGAIN.match(line)
        if not begun:
            return
        self._judge(True, "")
        step = step_of(begun[1])
        if not self.expected or step in plans or time.monotonic() > self.deadline:
            return
        how = "step" if step not in self.hit else "runner" if step not in self.cut else ""
        if how and (not self.only or step in self.only):
            longest = self.expected.get(begun[1], 2.0)
            share = 0.0 if self.only else 0.7 if longest > 1.5 else 0.3
            plans[step] = (time.monotonic() + self.dice.uniform(0.0, share) * longest, how)

    def _strike(
        self, step: str, how: str, victims: list[int], runner: "subprocess.Popen[str]"
    ) -> bool:
        """Kills; True where the runner is gone."""
        name = f"kill: {self.case.name}"
        self.in_flight += self._unkept()
        if how == "step":
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.hit.add(step)
            self.kills["step"] += 1
            self.waiting.append((name, f"{step}: its process, which the runner repeats"))
            return False
        self.cut.add(step)
        alone = self.dice.random() < 0.25
        self.kills["alone" if alone else "runner"] += 1
        if alone:
            runner.kill()
        else:
            self._kill_all(runner)
        runner.wait()
        words = "the runner alone, its step lives on" if alone else "the runner and its steps"
        self.waiting.append((name, f"{step}: {words}"))
        return True

    def _kill_all(self, runner: "subprocess.Popen[str]") -> None:
        runner.kill()
        for pid in processes_of(self.case.out, ""):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(os.getpgid(pid), signal.SIGKILL)

    def _unkept(self) -> int:
        """Answers of the teacher that are paid and not in the journal, right now."""
        paid = {item["key"] for item in self.case.teacher.requests() if item["paid"]}
        kept = set()
        for segment in self.case.folder.glob("*/state/journal/segment-*.jsonl"):
            for line in segment.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError):
                    kept.add(json.loads(line)["key"])
        return max(0, len(paid) - len(kept) + 1)


def _pump(runner: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert runner.stdout is not None
    for line in runner.stdout:
        lines.put(line)
    lines.put(None)


def processes_of(out: Path, step: str) -> list[int]:
    """Processes that work on a step of the run in `out`, the shells above them left out."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--function_to_execute" not in words or words[0].endswith(b"sh"):
            continue
        mine = any(f'"{out}/'.encode() in word for word in words)
        name = words[words.index(b"--function_to_execute") + 1].decode()
        if mine and step in ("", name):
            found.append(int(place.name))
    return found


def compare(
    name: str, calm: Path, killed: Path, tally: Tally, teacher: BadTeacher, asked: int,
    killer: Watch,
) -> None:  # fmt: skip
    """The disturbed end against the calm one."""
    found = differences(calm, killed)
    lost = max(0, rows_of(calm) - rows_of(killed))
    paid = Counter(item["key"] for item in teacher.requests()[asked:] if item["paid"])
    again = sum(times - 1 for times in paid.values() if times > 1)
    twice = max(0, again - killer.in_flight)
    detail = "; ".join(found[:4]) or f"weights, rows and summary are equal; {again} answers in "\
        "flight at a kill were asked again"  # fmt: skip
    tally.fault(f"kill: {name}, the end", not found, detail, lost=lost, twice=twice)
