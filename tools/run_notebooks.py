"""Run the notebooks with papermill, on the embedded suite: what `make tutorial` does.

Several run at once, each with its share of the cores; the longest begin. The results appear in
runs/tutorial only when every notebook has run. An earlier runs/tutorial becomes
runs/tutorial.previous; a run that failed is kept in runs/tutorial.failed.
"""

import argparse
import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
import yaml

from ctt_helpers.files import remove_leftovers
from ctt_helpers.messages import check_no_secret

ROOT = Path(__file__).resolve().parents[1]
LONGEST = ["08", "06", "04", "09", "03", "05"]  # they begin: no long one runs alone at the end

PR_SET_PDEATHSIG = 1  # of Linux's prctl: a signal for when the parent ends, however it ends
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

running: set[subprocess.Popen] = set()


def replace_folder(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`, in place of an older one."""
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)


def failure(notebook: Path) -> str:
    """What went wrong in an executed notebook: the failing cell's number, code and message.

    An empty string where nothing did.
    """
    if not notebook.is_file():
        return ""
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                code = "\n".join("    " + line for line in cell.source.splitlines()[:12])
                return f"cell {number}:\n{code}\n{output.ename}: {output.evalue}"
    return ""


def _end_with(parent: int) -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has ended in between
        os._exit(1)


def run(
    notebook: Path,
    output: Path,
    seconds: float | None,
    parameters: dict | None = None,
    **environ: str,
) -> str | None:
    """Run one notebook in its own folder, with this Python: None, or what went wrong.

    Args:
        notebook: the notebook to run.
        output: where the executed one goes; what it writes goes into a folder of that name.
        seconds: time limit, None for none.
        parameters: values for its parameters.
        environ: environment variables to add.

    Raises:
        ValueError: a parameter holds a token or a password, which would be written down.
    """
    check_no_secret("", parameters or {})
    command = [sys.executable, str(ROOT / "tools" / "run_one.py"), str(notebook), str(output)]
    command += ["--cwd", str(notebook.parent)]
    parameters = dict(parameters or {})
    # what the notebook writes goes beside it
    if "out: str" in notebook.read_text(encoding="utf-8"):
        parameters["out"] = os.path.relpath(output.with_suffix(""), notebook.parent)
    command += ["--parameters", yaml.safe_dump(parameters)]  # as JSON, 1e-05 would arrive as text
    environment = os.environ | environ
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        close_fds=False,  # a lock on the folder is held as long as papermill lives
        preexec_fn=functools.partial(_end_with, os.getpid()) if LIBC else None,
    )
    running.add(process)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"it did not end within {seconds} s, and was stopped (--seconds sets the limit)."
    finally:
        stop(process)  # too long, or Ctrl-C here
        running.discard(process)
    if process.returncode == 0:
        return None
    return failure(output) or "\n".join(errors.strip().splitlines()[-15:])


def stop(process: subprocess.Popen) -> None:
    """End papermill and its kernel together, if they still run."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def run_all(
    notebooks: list[Path], folder: Path, seconds: float | None, at_once: int
) -> Iterator[tuple[Path, float, str | None]]:
    """Run notebooks, so many at once: each, its seconds, and what went wrong, as they end.

    When the caller stops asking, those that still run are ended.
    """
    threads = str(max(1, (os.cpu_count() or 1) // at_once))

    def one(notebook: Path) -> tuple[Path, float, str | None]:
        began = time.monotonic()
        problem = run(
            notebook.resolve(),
            folder / notebook.name,
            seconds,
            HF_HUB_OFFLINE="1",
            OMP_NUM_THREADS=threads,
        )
        return notebook, time.monotonic() - began, problem

    def place(notebook: Path) -> int:
        number = notebook.stem[:2]
        return LONGEST.index(number) if number in LONGEST else len(LONGEST)

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(one, notebook) for notebook in sorted(notebooks, key=place)]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):  # one may just be starting
                for process in list(running):
                    stop(process)
                time.sleep(0.05)


def end_when_told() -> None:
    """Make TERM and HUP end this process as Ctrl-C does, so that what it started ends with it.

    HUP stays ignored where `nohup` made it so.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no HUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def duration(seconds: float) -> str:
    """43 s, or 2 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--notebooks", type=Path, default=ROOT / "notebooks", help="folder with NN_name.ipynb files"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "tutorial", help="folder for the results"
    )
    parser.add_argument("--seconds", type=int, default=1200, help="time limit for each notebook")
    parser.add_argument(
        "--at-once",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="how many run at once (about 1 GB of memory each)",
    )
    options = parser.parse_args()
    notebooks = sorted(options.notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        print(
            f"There is no NN_name.ipynb in {options.notebooks}. `make notebooks` makes them.",
            file=sys.stderr,
        )
        return 1
    out = options.out.resolve()
    remove_leftovers(out.parent, f"{out.name}.tmp")
    working = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    working.mkdir(parents=True)
    started = time.monotonic()
    try:
        problem = None
        with contextlib.closing(
            run_all(notebooks, working, options.seconds, max(1, options.at_once))
        ) as ended:
            for notebook, took, problem in ended:
                number, _, name = notebook.stem.partition("_")
                said = duration(took) if problem is None else "failed"
                print(f"{number} {name.replace('_', ' ')} ... {said}", flush=True)
                if problem is not None:
                    break
        if problem is not None:
            failed = out.with_name(out.name + ".failed")
            replace_folder(working, failed)
            print(f"\n{notebook.name}, {problem}\n\nWhat ran is in {failed}.", file=sys.stderr)
            return 1
        if out.exists():
            previous = out.with_name(out.name + ".previous")
            replace_folder(out, previous)
            print(f"The earlier results are now in {previous}.")
        working.rename(out)
    finally:
        if working.exists():
            shutil.rmtree(working)
    print(f"All {len(notebooks)} notebooks ran in {duration(time.monotonic() - started)}.")
    print(f"Look at them in {out}: `make lab` opens JupyterLab.")
    return 0


if __name__ == "__main__":
    end_when_told()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nStopped. Earlier results are as they were.\nThe same command begins anew.")
