import io
import sys

from pipestill.pipelines.screen import Screen


def test_progress_is_shown_rarely_and_at_its_end():
    lines = []
    screen = Screen(lines.append)
    for step in range(1, 301):
        screen.step_line("train dss:0", f"step {step}/300  loss 1.0")
    screen.step_line("label", "teacher: 3 of 9 calls, 1 a second")
    screen.step_line("label", "teacher: 4 of 9 calls, 1 a second")
    screen.step_line("evaluate", "evaluate: dss: 3 of 9 right")
    screen.step_line("evaluate", "evaluate: dss: 4 of 9 right")
    assert [line.split(" s  ")[1].strip() for line in lines] == [
        "train dss:0: step 1/300  loss 1.0",
        "train dss:0: step 300/300  loss 1.0",
        "label: teacher: 3 of 9 calls, 1 a second",
        "evaluate: dss: 3 of 9 right",
        "evaluate: dss: 4 of 9 right",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_status_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    screen.step_line("a", "step 1/9  loss 1")
    screen.step_line("b", "step 2/9  loss 1")
    screen.line("b: done")
    screen.ended("a")
    screen.close()
    shown = terminal.getvalue()
    assert "a: step 1/9   |   b: step 2/9" in shown
    assert shown.count("\n") == 1
    assert shown.endswith("\r\x1b[K")
