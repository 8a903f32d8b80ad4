"""Trains the quickstart's student with other packages and with this one: ``python -m benchmarks.peers [--store]``.

Short runs are timed in turn, then every run trains to the end and its student is evaluated. Each run is a process of
its own; those of other packages run in their own environment (``make peers`` installs it).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.__main__ import processor
from benchmarks.peers.alignment import Alignment, compare
from benchmarks.peers.evaluation import bits_per_byte
from benchmarks.peers.job import SCRIPTS, add_tokenizer, write_job
from benchmarks.peers.runs import ALIGNED, RUNS
from benchmarks.peers.table import render
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer

_FOLDER = Path(__file__).parent
RESULTS = _FOLDER / "results.json"
README = _FOLDER.parent / "README.md"
BEGIN, END = "<!-- peers -->\n", "<!-- end of peers -->"


class Comparison:
    """Runs of one job.

    Args:
        folder: Directory of everything that is written.
        peer_python: Interpreter of the other packages' environment.
        names: Runs to make.
    """

    def __init__(self, folder: Path, peer_python: Path, names: list[str]) -> None:
        self.folder, self.peer_python, self.names = folder, peer_python, names

    def run(self, name: str, job: str, num_steps: int, *, student: Path | None = None, groups: bool = False) -> Any:
        """Makes one run in a process of its own, and returns what it recorded."""
        run, output = RUNS[name], self.folder / "record.json"
        python, module = (sys.executable, "ours") if run.side == "ours" else (str(self.peer_python), "trl_run")
        command = [python, "-m", f"benchmarks.peers.{module}", "--job", str(self.folder / job), "--run", name]
        command += ["--steps", str(num_steps), "--output", str(output)]
        command += ["--student", str(student)] if student is not None else []
        command += ["--groups", str(self.folder / "groups.json")] if groups else []
        offline = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
        return json.loads(output.read_text())

    def time(self, num_rounds: int, warm_up: int, num_timed: int) -> dict[str, dict[str, Any]]:
        """Times short runs in turn: a machine that becomes slower does so for all of them."""
        runs: dict[str, dict[str, Any]] = {n: {"seconds": [], "cpu_seconds": [], "peak_bytes": []} for n in self.names}
        for round_ in range(num_rounds):
            for name in self.names:
                record = self.run(name, "job", warm_up + num_timed)
                for key in ("seconds", "cpu_seconds"):
                    runs[name][key].append(record[key][warm_up:])
                runs[name]["peak_bytes"].append(record["peak_bytes"])
                self.keep(runs)
                median = statistics.median(record["seconds"][warm_up:])
                peak = record["peak_bytes"] / 1e9
                print(f"round {round_ + 1}, {RUNS[name].label}: {median:.2f} s per step, {peak:.2f} GB", flush=True)
        return runs

    def train(self, name: str, num_steps: int) -> dict[str, Any]:
        """Trains to the end, evaluates the student, and judges a peer's alignment."""
        student, groups = self.folder / "students" / name, RUNS[name].side != "ours"
        record = self.run(name, "job", num_steps, student=student, groups=groups)
        add_tokenizer(student, self.folder / "job" / "student")
        found = {key: record[key] for key in ("losses", "num_tokens", "threads", "packages")}
        found["bits_per_byte"] = bits_per_byte(student)
        if groups:
            theirs, ours = self.judged(name)
            found |= {"alignment": asdict(theirs), "own_alignment": asdict(ours)}
        print(f"{RUNS[name].label}: {found['bits_per_byte']:.3f} bits per byte", flush=True)
        return found

    def keep(self, runs: dict[str, Any]) -> None:
        """Writes what is measured so far, which takes an hour or more, into ``runs.json``."""
        (self.folder / "runs.json").write_text(json.dumps(runs))

    def judged(self, name: str) -> tuple[Alignment, Alignment]:
        """Judges the groups that the last run wrote."""
        job = json.loads((self.folder / "job" / "job.json").read_text())
        student, teacher = (
            CanonicalVocabulary.from_tokenizer(load_tokenizer(job[side])) for side in ("student", "teacher")
        )
        return compare(student, teacher, json.loads((self.folder / "groups.json").read_text()), RUNS[name].merge)

    def scripts(self) -> dict[str, dict[str, Any]]:
        """Judges the alignment of sentences in many scripts."""
        num_steps = len(SCRIPTS.read_text().splitlines()) // 2
        write_job(self.folder / "scripts", num_steps, SCRIPTS)
        found = {}
        for name in (name for name in ALIGNED if name in self.names):
            self.run(name, "scripts", num_steps, groups=True)
            theirs, ours = self.judged(name)
            found[name] = {"theirs": asdict(theirs), "ours": asdict(ours)}
        return found


def main() -> None:
    """Makes all runs, prints the tables, and stores them if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="which runs")
    parser.add_argument("--steps", type=int, default=60, help="steps before the students are evaluated")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of short runs in turn")
    parser.add_argument("--timed-steps", type=int, default=8, help="timed steps of a short run")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of a short run that do not count")
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="directory of jobs and students")
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"), help="the peers' interpreter")
    parser.add_argument("--store", action="store_true", help="write results.json and the tables of ../README.md")
    options = parser.parse_args()
    prepare()
    write_job(options.folder / "job", max(options.steps, options.warm_up + options.timed_steps))
    comparison = Comparison(options.folder, options.python, options.only)
    runs = comparison.time(options.rounds, options.warm_up, options.timed_steps)
    for name in options.only:
        runs[name] |= comparison.train(name, options.steps)
        comparison.keep(runs)
    results = collect(runs, comparison.scripts(), vars(options))
    print(f"\n{render(results)}")
    if options.store:
        store(results, RESULTS, README)


def collect(runs: dict[str, Any], scripts: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Puts the results together, once all runs have read the same number of tokens in every step.

    Raises:
        RuntimeError: If runs have read different numbers, or had different numbers of threads.
    """
    tokens = {name: run.pop("num_tokens") for name, run in runs.items()}
    first = next(iter(tokens.values()))
    if other := [name for name, own in tokens.items() if own != first]:
        raise RuntimeError(f"{', '.join(other)} read other numbers of tokens in a step than {next(iter(tokens))}")
    threads = {name: run.pop("threads") for name, run in runs.items()}
    if len(set(threads.values())) > 1:
        raise RuntimeError(f"runs have different numbers of threads: {threads}; set OMP_NUM_THREADS for all of them")
    packages = {RUNS[name].side: run.pop("packages") for name, run in runs.items()}
    aligned = [run.pop("own_alignment") for run in runs.values() if "own_alignment" in run]
    settings = {
        "machine": processor(),
        "threads": next(iter(threads.values())),
        "packages": packages,
        "tokens_per_step": sum(first) / len(first),
        **{name: options[name] for name in ("steps", "rounds", "timed_steps", "warm_up")},
    }
    own = aligned[0] if aligned else None
    return {"settings": settings, "runs": runs, "own_alignment": own, "scripts": scripts}


def store(results: dict[str, Any], path: Path, readme: Path) -> None:
    """Writes the results, and the tables into the page between their marks."""
    path.write_text(json.dumps(results, indent=1) + "\n")
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + render(results) + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
