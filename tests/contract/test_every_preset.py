"""Every preset of every installed method can be built."""

from importlib.metadata import entry_points

import pytest

METHODS = {entry.name: entry.load() for entry in entry_points(group="expunge.methods")}
PRESETS = [(name, preset) for name, method in METHODS.items() for preset in method.presets]


@pytest.mark.parametrize(("name", "preset"), PRESETS, ids=[" ".join(each) for each in PRESETS])
def test_a_preset_can_be_built(name: str, preset: str) -> None:
    method = METHODS[name]
    built = method.preset(preset)
    assert {setting: getattr(built, setting) for setting in method.presets[preset]} == dict(method.presets[preset])
