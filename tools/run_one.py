"""Run one notebook with papermill, and talk to its kernel through files, not through TCP ports.

    python tools/run_one.py NOTEBOOK OUTPUT [--cwd FOLDER] [--parameters YAML]

Jupyter looks for ports that are free and tells the new kernel to take them. Where several kernels
begin at once, another may have taken one in the meantime, and the kernel dies: "Kernel died before
replying to kernel_info". A folder of one's own has no other takers.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from traitlets.config import Config

LONGEST = 103  # bytes in the path of a Unix socket on macOS; 107 on Linux
# seconds that a cell's output may come after its end; papermill's 4 are few on a busy machine
LATE = 120


@contextlib.contextmanager
def own_sockets() -> Iterator[Config]:
    """A configuration for a kernel whose sockets are in a new folder, which goes at the end.

    Where there are none of these (Windows), or their path would be too long, it is Jupyter's own.
    """
    with tempfile.TemporaryDirectory(prefix="ctt-", ignore_cleanup_errors=True) as folder:
        socket = os.path.join(folder, "kernel-ipc-5")  # the last of five
        if os.name != "posix" or len(os.fsencode(socket)) > LONGEST:
            yield Config()
            return
        file = os.path.join(folder, "kernel.json")
        yield Config(KernelManager={"transport": "ipc", "connection_file": file})


def run_one(notebook: Path, output: Path, cwd: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook in the folder `cwd`, with this Python.

    Raises:
        papermill.PapermillExecutionError: a cell failed. `output` has all up to there.
    """
    import papermill

    with own_sockets() as config:
        papermill.execute_notebook(
            notebook,
            output,
            parameters,
            kernel_name="python3",
            cwd=cwd,
            progress_bar=False,
            config=config,
            iopub_timeout=LATE,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="where the executed one goes")
    parser.add_argument("--cwd", type=Path, default=Path(), help="folder to run it in")
    parser.add_argument(
        "--parameters", type=yaml.safe_load, default={}, help="such as '{seed: 1}'; YAML"
    )
    options = parser.parse_args()
    run_one(options.notebook, options.output, options.cwd, options.parameters)
    return 0


if __name__ == "__main__":
    sys.exit(main())
