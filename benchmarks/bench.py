"""All benchmarks that need neither data nor trained weights, one after another, into ``benchmarks/RESULTS.md``.

    make bench [ARGS="--only floor --only scale"] [ARGS=--fresh] [ARGS=--no-peers] [PEERS=DIR]

Each section of the results is one command, run with few rounds so that all take minutes, in a process of its own. What
a section came to is kept in ``build/bench``, and the results are written anew after each; run again, only those are
measured that are missing, that failed, or whose command or program code has changed since (``--fresh``: all). What was
measured on another machine or with other packages is not shown. A section without a table has failed: the results and
the exit status, 1, say so, and the others still run. A gate that does not hold is a result, and no failure.

Neighbouring methods run in the environment PEERS, which is made where there is none (``peers/setup.sh``; several GB).
Numbers are of random weights: of time and memory, not of accuracy.
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

from bench_report import Record, results
from bench_sections import SECTIONS, Section
from bench_setup import ROOT, SetupError, last_lines, prepare_inputs, run_logged, set_up_peers
from machine import OtherWork, code_digest, commit, describe

from moleflow.model.files.atomic import atomic_write


class Bench:
    """The sections' records in ``folder``, and the results in ``results``."""

    def __init__(self, options: argparse.Namespace, sections: Sequence[Section]) -> None:
        self.options, self.sections = options, sections
        self.folder = Path(options.folder).resolve()
        self.machine, self.code, self.commit = describe(), code_digest(), commit()
        self._peers: str | None = None

    def record(self, section: Section) -> Record | None:
        """What is known of a section from this machine, if anything; what an older program wrote is not known."""
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
        """Measure what is asked for and missing; 1 when a section of these failed."""
        chosen = [each for each in self.sections if each.name in (self.options.only or [each.name])]
        if not self.options.peers:
            chosen = [each for each in chosen if "{peers}" not in each.command]
        failed = []
        for section in chosen:
            if self.is_current(section) and not self.options.fresh:
                print(f"bench: {section.name}: kept (--fresh measures again)", flush=True)
                continue
            print(f"bench: {section.name} …", flush=True)
            record = self.measure(section)
            with atomic_write(self.folder / section.name / "record.json") as path:
                path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
            self.write()
            state = "failed" if record.failed else "measured"
            print(f"bench: {section.name}: {state}, {record.seconds:.0f} s", flush=True)
            if record.failed:
                print(f"bench: {section.name}: {record.reason}", file=sys.stderr, flush=True)
                failed.append(section.name)
        self.write()
        print(f"bench: {self.options.results}" + (f"; failed: {', '.join(failed)}" if failed else ""))
        return int(bool(failed))

    def measure(self, section: Section) -> Record:
        """Run a section's command. Whatever goes wrong is in the record."""
        place = self.folder / section.name
        place.mkdir(parents=True, exist_ok=True)
        load, started, output = round(os.getloadavg()[0], 2), time.monotonic(), place / "result.json"
        output.with_suffix(".md").unlink(missing_ok=True)
        values = {
            "python": sys.executable,
            "peers": f"{self.options.peers_folder}/bin/python",
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
                reason = f"ended with status {code}: {last_lines(place / 'log.txt', Path(words[1]).stem)}"
        except (SetupError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        shown = values | {"python": "python", "peers": "PEERS/bin/python"}
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
        """The results as far as they are known."""
        text = results(self.machine, [(section, self.record(section)) for section in self.sections])
        with atomic_write(Path(self.options.results)) as path:
            path.write_text(text, encoding="utf-8")

    def _prepare(self, section: Section) -> None:
        """Make what the section's command needs. Raises ``SetupError``."""
        if "{images}" in section.command or "{checkpoint}" in section.command:
            prepare_inputs(self.folder, self.code)
        if "{peers}" in section.command:
            if self._peers is None:
                self._peers = set_up_peers(Path(self.options.peers_folder), self.folder / "peers.log")
            if self._peers:
                raise SetupError(self._peers)

    def _plain(self, text: str) -> str:
        """Text without the paths of this machine."""
        peers, home = str(self.options.peers_folder), str(Path.home())
        names = {peers: "PEERS", sys.prefix: "VENV", f"{ROOT}/": "", str(self.folder): "FOLDER", home: "~"}
        for path, name in names.items():
            text = text.replace(path, name) if len(path) > 1 else text
        return text


def main(arguments: Sequence[str] | None = None, sections: Sequence[Section] = SECTIONS) -> int:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [section.name for section in sections]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without the neighbours")
    parser.add_argument("--peers-folder", type=Path, default=ROOT / ".venv-peers", help="their environment")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/bench", help="where what was measured is kept")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    options.peers_folder = options.peers_folder.absolute()  # not resolved: a link may be what was named
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    try:
        return Bench(options, sections).run()
    except KeyboardInterrupt:
        print("bench: stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
