"""Run a sweep with Snakemake: `make sweep`.

    python workflow/sweep.py CONFIG [--profile slurm] [further options of Snakemake]

With the Python that has Snakemake (workflow/requirements.txt). Ctrl-C, TERM and HUP end all that
was begun; jobs on a cluster are called off. The same command goes on.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from guard import TOP, end_those_below, when_told

HERE = Path(__file__).resolve().parent
SECONDS = 20  # for Snakemake to call off jobs on a cluster


def command(config: Path, profile: str, further: list[str]) -> list[str]:
    """How Snakemake is called."""
    return [
        *(sys.executable, str(HERE / "guard.py"), "snakemake"),
        *("--snakefile", str(HERE / "Snakefile")),
        *("--workflow-profile", str(HERE / "profiles" / profile)),
        *("--configfile", str(config)),
        *further,
        # a rehearsal has nothing else to show than the jobs
        *(("--quiet", "host") if {"-n", "--dry-run"} & set(further) else ()),
    ]


def told(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("config", type=Path, help="a file such as workflow/config.yaml")
    parser.add_argument("--profile", default="laptop", help="a folder of workflow/profiles")
    options, further = parser.parse_known_args()
    if not options.config.is_file():
        parser.error(f"there is no config {options.config}")
    if not (HERE / "profiles" / options.profile).is_dir():
        known = ", ".join(sorted(path.name for path in (HERE / "profiles").iterdir()))
        parser.error(f"there is no profile {options.profile!r}. There are: {known}.")
    when_told(told)
    os.environ[TOP] = str(os.getpid())
    # a group of its own: Ctrl-C is handed on to it as a whole, and once
    process = subprocess.Popen(
        command(options.config, options.profile, further), start_new_session=True
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        try:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt, ProcessLookupError):
            pass
        print(
            "\nStopped. What has finished stays, and what was cut off goes on from where it saved."
            "\nThe same command goes on.",
            file=sys.stderr,
        )
        return 130
    finally:
        end_those_below()


if __name__ == "__main__":
    sys.exit(main())
