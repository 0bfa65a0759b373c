"""The command `python -m ctt_helpers.train --config run.yaml`: see `ctt_helpers.runs`."""

if __name__ != "__main__":  # as a module it would stand in the way of the function of its name
    raise ImportError(
        "ctt_helpers.train is a command (python -m ctt_helpers.train). The function is ctt.train, "
        "and the parts of the command are in ctt_helpers.runs."
    )

from ctt_helpers.runs import main

main()
