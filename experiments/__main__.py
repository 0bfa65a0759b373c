"""`python -m experiments`: see `command`."""

from experiments.command import main

# what a second process runs has to be in a module of its own, and not here
if __name__ == "__main__":
    main()
