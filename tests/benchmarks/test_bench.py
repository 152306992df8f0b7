"""`make bench` assembles its results from what was measured, goes on where it was stopped, and says what failed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.shared import machine
from benchmarks.shared.subprocesses import environment
from benchmarks.suite import report, run, setup
from benchmarks.suite.sections import SECTIONS, Section

GOOD = """
import sys
from pathlib import Path
output = Path(sys.argv[-1])
with open({calls!r}, "a") as calls: calls.write("{name}\\n")
output.write_text("{{}}")
output.with_suffix(".md").write_text("# Own title\\n\\n| ms |\\n|---|\\n| {name} 42 |\\n\\n## Detail\\n\\nmore\\n")
sys.exit({status})
"""

BAD = "import sys; print('first'); print({root!r} + '/model: no such weights', file=sys.stderr); sys.exit(3)"


class Project:
    """Sections that take no time, and a place for what they come to."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "RESULTS.md"
        self.sections = [self.section("one"), self.section("two"), self.section("three", 1)]

    def script(self, name: str, text: str) -> Path:
        path = self.root / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        return path

    def section(self, name: str, status: int = 0) -> Section:
        path = self.script(name, GOOD.format(calls=str(self.root / "calls"), name=name, status=status))
        return Section(name, f"Title of {name}", f"How fast is {name}?", f"{{python}} {path}")

    def bench(self, *arguments: str) -> int:
        places = ["--folder", str(self.root / "kept"), "--results", str(self.results)]
        return run.main([*places, "--baselines-folder", str(self.root / "baselines"), *arguments], self.sections)

    def calls(self) -> list[str]:
        """What was measured since this was last asked."""
        log = self.root / "calls"
        done = log.read_text(encoding="utf-8").split() if log.exists() else []
        log.unlink(missing_ok=True)
        return done

    @property
    def text(self) -> str:
        return self.results.read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(run, "describe", lambda: {"processor": "abacus", "memory": "1 GiB"})
    monkeypatch.setattr(run, "code_digest", lambda: "first")
    monkeypatch.setattr(machine.OtherWork, "share", lambda _: 0.02)
    return Project(tmp_path)


def test_every_section_has_its_question_command_and_table_below_the_machine(project: Project) -> None:
    assert project.bench() == 0
    text = project.text
    assert text.startswith("# Results of `make bench`\n")
    assert "| processor | abacus |" in text
    for name in ("one", "two", "three"):
        assert f"## Title of {name}\n\nHow fast is {name}?\n\n```sh\npython " in text
        assert f"```\n\n| ms |\n|---|\n| {name} 42 |\n\n### Detail\n\nmore\n" in text
    assert "Own title" not in text
    assert sys.prefix not in text


def test_what_is_measured_is_kept_and_measured_again_only_when_asked(project: Project) -> None:
    project.bench("--only", "two")
    assert project.calls() == ["two"]
    assert project.text.count("| not measured |") == 2
    project.bench()
    assert project.calls() == ["one", "three"]
    assert "not measured" not in project.text
    project.bench()
    assert project.calls() == []
    project.bench("--fresh", "--only", "one", "--only", "three")
    assert project.calls() == ["one", "three"]


def test_a_section_whose_command_or_program_changed_is_measured_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.bench()
    project.calls()
    first = project.sections[0]
    project.sections[0] = Section(first.name, first.title, first.question, f"{first.command} --rounds 9")
    project.bench()
    assert project.calls() == ["one"]
    monkeypatch.setattr(run, "code_digest", lambda: "second")
    project.bench("--only", "two")
    assert project.calls() == ["two"]
    assert "| one 42 |" in project.text  # shown, with its own commit, until it is measured again


def test_what_another_machine_measured_is_not_shown(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.bench()
    project.calls()
    monkeypatch.setattr(run, "describe", lambda: {"processor": "slide rule"})
    project.bench("--only", "one")
    assert project.calls() == ["one"]
    assert "slide rule" in project.text
    assert "| two 42 |" not in project.text


def test_a_section_that_fails_is_reported_with_its_reason_and_tried_again(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    good = project.sections[0].command
    bad = f"{{python}} {project.script('bad', BAD.format(root=str(run.ROOT)))}"
    project.sections[0] = Section("one", "Title of one", "How?", bad)
    assert project.bench() == 1
    assert project.calls() == ["two", "three"]
    assert "| Title of one | **failed** |" in project.text
    assert "**Failed**: ended with status 3: first / model: no such weights\n" in project.text
    assert "failed: one" in capfd.readouterr().out
    assert project.bench() == 1
    project.sections[0] = Section("one", "Title of one", "How?", good)
    assert project.bench() == 0
    assert project.calls() == ["one"]
    assert "ailed" not in project.text


def test_a_program_that_breaks_after_its_table_has_failed_but_a_gate_that_does_not_hold_is_a_result(
    project: Project,
) -> None:
    project.sections = [project.section("gate", 1), project.section("crash", 134)]
    assert project.bench() == 1
    assert "| Title of gate | measured |" in project.text
    assert "**Failed**: ended with status 134: it printed nothing" in project.text


def test_without_the_baselines_nothing_is_run_in_their_environment(project: Project) -> None:
    project.sections.append(Section("other", "Other", "How?", f"{{baselines}} {project.root / 'one.py'}"))
    assert project.bench("--no-baselines") == 0
    assert "| Other | not measured |" in project.text


def test_baselines_that_cannot_be_set_up_fail_their_own_sections_only(project: Project) -> None:
    (project.root / "baselines").mkdir()
    (project.root / "baselines" / "thesis.txt").touch()
    project.sections.insert(0, Section("other", "Other", "How?", f"{{baselines}} {project.root / 'one.py'}"))
    assert project.bench() == 1
    assert project.calls() == ["one", "two", "three"]
    assert "**Failed**: the baselines' environment could not be set up: setup: BASELINES holds files" in project.text


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_kill_ends_what_is_running_and_loses_nothing_that_is_done(
    tmp_path: Path, kind: signal.Signals, status: int
) -> None:
    slow = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    project = Project(tmp_path)
    program = project.script(
        "program",
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)  # may come to us ignored\n"
        "from benchmarks.suite import run\nfrom benchmarks.suite.sections import Section\n"
        "run.describe = dict  # the real one loads PyTorch to ask for GPUs\n"
        f"one = Section('one', 'One', '?', '{{python}} {tmp_path}/one.py')\n"
        f"slow = Section('slow', 'Slow', '?', '{{python}} {project.script('slow', slow)}')\n"
        f"places = ['--folder', {str(tmp_path / 'kept')!r}, '--results', {str(project.results)!r}]\n"
        "sys.exit(run.main(places, [one, slow]))\n",
    )
    with subprocess.Popen([sys.executable, program], env=environment(), stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 120
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.05)
        running.send_signal(kind)
    assert running.returncode == status
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert "| one 42 |" in project.text
    assert "| Slow | not measured |" in project.text


def test_the_results_are_replaced_in_one_step(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.bench()
    before = project.text

    def fail(*_: object, **__: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        project.bench()
    monkeypatch.undo()
    assert project.text == before
    assert [path.name for path in project.root.glob(".RESULTS*")] == []


def test_a_section_that_takes_too_long_is_ended(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "LIMIT_SECONDS", 0.2)
    project.sections = [
        Section("slow", "Slow", "?", f"{{python}} {project.script('slow', 'import time; time.sleep(60)')}")
    ]
    assert project.bench() == 1
    assert "timed out after 0.2 seconds" in project.text


def test_every_section_names_a_program_that_is_there_and_places_that_are_filled() -> None:
    values = dict.fromkeys(("python", "baselines", "images", "checkpoint"), "x")
    for section in SECTIONS:
        assert section.words(values)[:4] == ["x", "-m", "benchmarks", section.benchmark]
        assert section.benchmark in NAMES
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)


def test_the_code_digest_follows_programs_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    program = tmp_path / "model" / "flow.py"
    program.parent.mkdir()
    program.write_text("a = 1")
    before = machine.code_digest()
    (tmp_path / "model" / "README.md").write_text("about it")
    assert machine.code_digest() == before
    program.write_text("a = 2")
    assert machine.code_digest() != before


def test_an_environment_is_taken_only_with_exactly_the_wanted_releases() -> None:
    import torch

    release = torch.__version__.split("+")[0]
    assert setup.has_packages(Path(sys.executable), [f"torch=={release}"])
    assert not setup.has_packages(Path(sys.executable), ["torch==0.1"])
    assert not setup.has_packages(Path("no/such/python"), [])


def test_of_what_a_failed_program_said_its_own_error_is_quoted_before_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("speed: no baseline 'x'\nof a worker\n\nand more\nand more still\n", encoding="utf-8")
    assert setup.last_lines(log, "speed") == "speed: no baseline 'x'"
    assert setup.last_lines(log, "scale") == "of a worker / and more / and more still"


def test_what_our_children_do_is_no_other_work_and_what_the_rest_does_is(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own, now = iter([100.0, 130.0]), iter([7.0, 17.0]), iter([0.0, 20.0])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(busy))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(machine.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    assert machine.OtherWork().share() == pytest.approx((30 - 10) / (20 * 4))


def test_a_section_says_when_others_used_the_machine(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.OtherWork, "share", lambda _: 0.25)
    project.bench("--only", "one")
    assert "**Not a quiet machine**: 25% of the processors were busy with other work.\n\n| ms |" in project.text
    monkeypatch.setattr(machine.OtherWork, "share", lambda _: None)
    project.bench("--only", "one", "--fresh")
    assert "| unknown |" in project.text
    assert "quiet" not in project.text


def test_what_an_older_or_broken_program_kept_is_measured_again(project: Project) -> None:
    project.bench()
    project.calls()
    for name, text in (("one", '{"status": "measured"}'), ("two", "{")):
        (project.root / "kept" / name / "record.json").write_text(text, encoding="utf-8")
    project.bench()
    assert project.calls() == ["one", "two"]


def test_only_a_title_is_taken_from_a_table() -> None:
    table = "2 threads\n\n| ms |\n\n## Detail\n"
    kept = ["2 threads", "", "| ms |", "", "### Detail"]
    assert list(report.below(table)) == kept
    assert list(report.below(f"# Title\n\n{table}")) == kept
