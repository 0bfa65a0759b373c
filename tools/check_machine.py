"""Look at this machine before anything is installed: Python, disk, and what the install will bring.

Only the standard library, and only syntax that an old Python can read, so that it can say what is
wrong with it.

    check_machine.py --python           is this Python good enough? exit status, and one line if not
    check_machine.py --install .venv    the same, then the disk, then what will be installed where
"""

import os
import platform
import shutil
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
GB = 10**9
# the environment takes 2.0 GB, the downloads and pip's own copies of them about as much again
NEEDED_GB = 4
NEEDED_WITH_CUDA_GB = 10


def python_problem(version, has_pip=True):
    """What is wrong with a Python of this version (major, minor, ...), or None."""
    found = ".".join(str(part) for part in version[:3])
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        age = "too old" if tuple(version[:2]) < OLDEST else "newer than what was tested"
        return (
            "Python %s is %s: this project needs 3.11, 3.12 or 3.13. Install one "
            "(https://www.python.org/downloads/), then run again, if need be with `make "
            "PYTHON=/path/to/python3.12 env`." % (found, age)
        )
    if not has_pip:
        return (
            "Python %s has no `ensurepip`, so it cannot make a virtual environment. On Debian and "
            "Ubuntu: `sudo apt install python3-venv`, then run again." % found
        )
    return None


def mac_problem(system, machine, release):
    """Why PyTorch cannot be installed on this Mac (release as "14.5"), or None."""
    if system != "darwin" or (machine == "arm64" and int(release.split(".")[0] or 0) >= 14):
        return None
    return (
        "PyTorch has no build for this Python on macOS %s (%s): it needs Apple silicon, an arm64 "
        "Python and macOS 14 or newer. The notebooks also run on Colab." % (release, machine)
    )


def disk_problem(free_bytes, where):
    """What is wrong with this much free disk, or None."""
    if free_bytes < NEEDED_GB * GB:
        return (
            "Only %.1f GB are free for %s; the install needs %d GB. Free some space, or put the "
            "environment on another disk: `make VENV=/another/disk/ctt-venv "
            "env`." % (free_bytes / GB, where, NEEDED_GB)
        )
    return None


def plan(where, system, has_nvidia, free_bytes):
    """What the install will bring, in a few lines for the person who waits."""
    lines = [
        "Installing into %s: PyTorch, transformers, nnsight, JupyterLab and the test tools,"
        % where,
        "about 160 packages in the versions of constraints.txt. Only that folder and pip's cache "
        "change.",
        "Disk: 2.0 GB without CUDA (measured on Linux); %.0f GB are free. Time: about 3 minutes "
        "after the downloads." % (free_bytes / GB),
    ]
    if system.startswith("linux"):
        lines.append(
            "Downloads: up to 2.6 GB, because PyTorch for Linux brings NVIDIA's CUDA with it."
        )
        if not has_nvidia:
            lines.append(
                "No NVIDIA GPU was found here: PyTorch's CPU build is enough, and downloads much "
                "less. The page"
            )
            lines.append("'Get started' of PyTorch says how to tell pip where it is.")
        if free_bytes < NEEDED_WITH_CUDA_GB * GB:
            lines.append(
                "With CUDA, %d GB of free disk would be safer than what is here."
                % NEEDED_WITH_CUDA_GB
            )
    else:
        lines.append("Downloads: about 0.3 GB.")
    return "\n".join(lines)


def existing_parent(path):
    """The closest folder above `path` that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def main(arguments):
    try:
        import ensurepip  # noqa: F401

        has_pip = True
    except ImportError:
        has_pip = False
    problem = python_problem(sys.version_info, has_pip)
    if problem is None and arguments[:1] == ["--install"] and len(arguments) == 2:
        where = arguments[1]
        free = shutil.disk_usage(existing_parent(where)).free
        mac = mac_problem(sys.platform, platform.machine(), platform.mac_ver()[0])
        problem = mac or disk_problem(free, where)
        if problem is None:
            print(plan(where, sys.platform, shutil.which("nvidia-smi") is not None, free))
    elif problem is None and arguments != ["--python"]:
        problem = "Usage: check_machine.py --python | --install FOLDER"
    if problem is not None:
        sys.stderr.write(problem + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
