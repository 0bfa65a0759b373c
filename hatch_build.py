"""Build hook: put data/tiny into the wheel as ctt_helpers/_data/tiny.

An editable install reads data/tiny where it is, so it gets no copy that could go stale.
"""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        if version == "standard":
            build_data["force_include"]["data/tiny"] = "ctt_helpers/_data/tiny"
