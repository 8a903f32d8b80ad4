"""Carries out jobs in a few processes, keeps what is done, and goes on where it was cut off."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from experiments.finished import RESULTS, FinishedRun, Key, drop_cut_line, read_lines
from experiments.jobs import Job, carry_out


def run_jobs(jobs: dict[Key, Job], folder: Path, num_processes: int) -> None:
    """Runs every job that the results do not hold, in the order given, but for those whose needs are not done.

    A job whose settings are those of a finished one takes over its result. A job that fails stops neither the others
    nor the processes; those that need it are not run. A process that is killed, for want of memory for instance, ends
    them all.

    Raises:
        RuntimeError: At the end, if a job failed: names it and its output.
    """
    drop_cut_line(folder)
    if failed := _Runner(jobs, folder).run(num_processes):
        raise RuntimeError(
            f"{len(failed)} of {len(jobs)} runs failed; the same command tries them again:\n"
            + "\n".join(f"{'/'.join(map(str, key))}: {reason}" for key, reason in failed.items())
        )


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made if need be: two processes would remove each other's runs.

    Raises:
        RuntimeError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "lock", timeout=0, fallback_to_soft=False).acquire()
    except Timeout:
        raise RuntimeError(f"another process runs in {folder}; wait for it, or give another folder") from None
    with lock:
        yield


class _Runner:
    def __init__(self, jobs: dict[Key, Job], folder: Path) -> None:
        self.jobs = jobs
        self.folder = folder
        lines = read_lines(folder)
        self.finished = {done.settings: done for done in lines}
        self.recorded = {(done.key, done.settings) for done in lines}
        self.waiting = list(jobs)
        self.done: set[Key] = set()
        self.failed: dict[Key, str] = {}
        self.running: dict[Future[FinishedRun], Key] = {}

    def run(self, num_processes: int) -> dict[Key, str]:
        """Returns the jobs that failed, with the reason."""
        # Before the processes start: libraries read them when they are loaded.
        os.environ |= {"HF_DATASETS_CACHE": str(self.folder / "cache"), "HF_HUB_OFFLINE": "1"}
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(num_processes, context, initializer=_start_worker)
        try:
            with tqdm(total=len(self.jobs), unit="run", desc="runs") as bar:
                while self.waiting or self.running:
                    self._start(pool, num_processes)
                    bar.n = len(self.done) + len(self.failed)
                    bar.set_postfix_str(", ".join("/".join(map(str, key)) for key in self.running.values()))
                    ended, _ = wait(self.running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        self._end(future)
                bar.n = len(self.jobs)
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()  # nobody waits for these runs
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return self.failed

    def _start(self, pool: ProcessPoolExecutor, num_processes: int) -> None:
        """Gives the pool as many jobs as it has processes, and takes over results that are there."""
        for key in list(self.waiting):
            job = self.jobs[key]
            if any(need in self.failed for need in job.needs):
                self.waiting.remove(key)
                self.failed[key] = "needs a run that failed"
            elif self._is_done(job):
                self.waiting.remove(key)
                self.done.add(key)
            elif len(self.running) < num_processes and self.done.issuperset(job.needs):
                self.waiting.remove(key)
                self.running[pool.submit(carry_out, job)] = key

    def _end(self, future: Future[FinishedRun]) -> None:
        key = self.running.pop(future)
        if (error := future.exception()) is None:
            self._append(future.result())
            self.done.add(key)
            return
        self.failed[key] = f"{type(error).__name__}: {error} (see {self.jobs[key].run_folder / 'output.txt'})"
        tqdm.write(f"failed: {'/'.join(map(str, key))}: {self.failed[key]}")
        if isinstance(error, BrokenProcessPool):
            self.waiting.clear()  # the pool takes no more

    def _is_done(self, job: Job) -> bool:
        """Whether the result is there, its own or that of the same settings, and the model that others read."""
        if "HFExport" in json.dumps(job.config) and not (job.run_folder / "export").exists():
            return False
        if (same := self.finished.get(job.settings)) is None or job.shortfall(same.metrics):
            return False
        if (job.key, job.settings) in self.recorded:
            return True
        suite, run, seed = job.key
        self._append(replace(same, suite=suite, run=run, seed=seed))
        return True

    def _append(self, done: FinishedRun) -> None:
        with (self.folder / RESULTS).open("a") as file:
            file.write(json.dumps(asdict(done)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.finished[done.settings] = done
        self.recorded.add((done.key, done.settings))


def _start_worker() -> None:
    import datasets
    import torch

    torch.set_num_threads(1)  # more of them slow models of this size down
    datasets.disable_progress_bars()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Where the parent is killed, a worker would go on with its run, which nobody waits for.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
