"""Run every benchmark that needs neither data nor trained weights, one after another, into ``benchmarks/RESULTS.md``.

    make bench [ARGS="--only lower_bound --only scale"] [ARGS=--fresh] [ARGS=--no-baselines] [BASELINES=DIR]

Each section of the results is one command in a process of its own, with few rounds, so that all of them take minutes.
Results are kept in ``build/bench``, and RESULTS.md is written again after each section. A second run measures only
what is missing or failed, or whose command or code has changed (``--fresh``: everything). Results of another machine
or of other package releases are not shown. A section without a table has failed: the results and the exit status, 1,
say so, and the other sections still run. A gate that fails is a result, not a failure.

The baselines run in the environment BASELINES, which is made if it is missing (``baselines/setup.sh``; several GB).
Weights are random: the figures are about time and memory, not accuracy.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.shared.command import make_parser
from benchmarks.shared.errors import BenchmarkError
from benchmarks.shared.machine import OtherWork, code_digest, commit, describe
from benchmarks.shared.subprocesses import ROOT
from benchmarks.suite.report import Record, results
from benchmarks.suite.sections import SECTIONS, Section
from benchmarks.suite.setup import last_lines, prepare_inputs, run_logged, set_up_baselines
from moleflow.model.files.atomic import atomic_write


class Bench:
    """Measures sections, keeps their records in ``options.folder``, and writes ``options.results``."""

    def __init__(self, options: argparse.Namespace, sections: Sequence[Section]) -> None:
        self.options, self.sections = options, sections
        self.folder = Path(options.folder).resolve()
        self.machine, self.code, self.commit = describe(), code_digest(), commit()
        self._baselines: str | None = None

    def record(self, section: Section) -> Record | None:
        """What this machine measured of a section, if anything. A record of an older format does not count."""
        try:
            found = Record(**json.loads((self.folder / section.name / "record.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.machine == self.machine else None

    def is_current(self, section: Section) -> bool:
        """Whether a section need not be measured again."""
        found = self.record(section)
        expected = (False, self.code, section.command)
        return found is not None and (found.failed, found.code, found.template) == expected

    def run(self) -> int:
        """Measure the sections that were asked for and are missing; 1 when one of them failed."""
        chosen = [each for each in self.sections if each.name in (self.options.only or [each.name])]
        if not self.options.baselines:
            chosen = [each for each in chosen if not each.needs_baselines]
        failed = []
        for section in chosen:
            if self.is_current(section) and not self.options.fresh:
                print(f"all: {section.name}: kept (--fresh measures again)", flush=True)
                continue
            print(f"all: {section.name} …", flush=True)
            record = self.measure(section)
            with atomic_write(self.folder / section.name / "record.json") as path:
                path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
            self.write()
            state = "failed" if record.failed else "measured"
            print(f"all: {section.name}: {state}, {record.seconds:.0f} s", flush=True)
            if record.failed:
                print(f"all: {section.name}: {record.reason}", file=sys.stderr, flush=True)
                failed.append(section.name)
        self.write()
        print(f"all: {self.options.results}" + (f"; failed: {', '.join(failed)}" if failed else ""))
        return int(bool(failed))

    def measure(self, section: Section) -> Record:
        """Run a section's command. A failure is noted in the record."""
        place = self.folder / section.name
        place.mkdir(parents=True, exist_ok=True)
        load, started, output = round(os.getloadavg()[0], 2), time.monotonic(), place / "result.json"
        output.with_suffix(".md").unlink(missing_ok=True)
        values = {
            "python": sys.executable,
            "baselines": f"{self.options.baselines_folder}/bin/python",
            "images": str(self.folder / "images"),
            "checkpoint": str(self.folder / "random.safetensors"),
        }
        reason, table, others = "", "", OtherWork()
        try:
            self._prepare(section)
            load, started, others = round(os.getloadavg()[0], 2), time.monotonic(), OtherWork()
            words = [*section.words(values), "--output", str(output)]
            code = run_logged(words, place / "log.txt", place / "temporary")
            with contextlib.suppress(OSError):
                table = output.with_suffix(".md").read_text(encoding="utf-8")
            if not table or code not in (0, 1):  # 1: a gate does not hold, which the table says
                reason = f"ended with status {code}: {last_lines(place / 'log.txt', section.benchmark)}"
        except (BenchmarkError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        shown = values | {"python": "python", "baselines": "BASELINES/bin/python"}
        return Record(
            failed=bool(reason),
            reason=self._plain(reason),
            table=table,
            template=section.command,
            command=self._plain(shlex.join([*section.words(shown), "--output", str(output)])),
            seconds=time.monotonic() - started,
            load=load,
            others=others.share(),
            date=time.strftime("%Y-%m-%d"),
            commit=self.commit,
            code=self.code,
            machine=self.machine,
        )

    def write(self) -> None:
        """Write the results known so far."""
        text = results(self.machine, [(section, self.record(section)) for section in self.sections])
        with atomic_write(Path(self.options.results)) as path:
            path.write_text(text, encoding="utf-8")

    def _prepare(self, section: Section) -> None:
        """Make what the section's command needs. Raises ``BenchmarkError``."""
        if "{images}" in section.command or "{checkpoint}" in section.command:
            prepare_inputs(self.folder, self.code)
        if section.needs_baselines:
            if self._baselines is None:
                self._baselines = set_up_baselines(self.options.baselines_folder, self.folder / "baselines.log")
            if self._baselines:
                raise BenchmarkError(self._baselines)

    def _plain(self, text: str) -> str:
        """Text without this machine's paths."""
        baselines, home = str(self.options.baselines_folder), str(Path.home())
        names = {baselines: "BASELINES", sys.prefix: "VENV", f"{ROOT}/": "", str(self.folder): "FOLDER", home: "~"}
        for path, name in names.items():
            text = text.replace(path, name) if len(path) > 1 else text
        return text


def main(arguments: Sequence[str] | None = None, sections: Sequence[Section] = SECTIONS) -> int:
    """Run from a command line."""
    parser = make_parser("all", __doc__)
    names = [section.name for section in sections]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=f"repeatable; any of {', '.join(names)}"
    )
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--no-baselines", dest="baselines", action="store_false", help="leave the baselines out")
    parser.add_argument("--baselines-folder", type=Path, default=ROOT / ".venv-baselines", help="their environment")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/bench", help="where measurements are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    options.baselines_folder = options.baselines_folder.absolute()  # not resolved: it may be a link
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running section is ended too
    try:
        return Bench(options, sections).run()
    except KeyboardInterrupt:
        print("all: stopped; the same command continues from here", file=sys.stderr)
        return 130
