"""Build hook: put the data into the wheel, as ctt_helpers/_data.

An editable install reads data/ where it is, so it gets no copy that could go stale.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version == "standard":
            for name in ("tiny", "pythia_blimp"):
                build_data["force_include"][f"data/{name}"] = f"ctt_helpers/_data/{name}"
