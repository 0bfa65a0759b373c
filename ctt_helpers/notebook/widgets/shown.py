"""What every widget is: an object with a `.widget`, which displays as it."""

from typing import Any


class Shown:
    """An object that has a `.widget` and displays as it."""

    def _ipython_display_(self, **_options: Any) -> None:
        from IPython.display import display

        display(self.widget)
