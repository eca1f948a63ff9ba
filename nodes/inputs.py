"""Typed node inputs from the knobs that the methods declare."""

from comfy_api.latest import io

from ..samplers.core import complete


def knob_input(knob):
    common = {"default": knob.default, "tooltip": knob.tooltip, "advanced": knob.advanced or None}
    if isinstance(knob.default, bool):
        return io.Boolean.Input(knob.name, **common)
    if isinstance(knob.default, str):
        return io.Combo.Input(knob.name, options=list(knob.options), **common)
    kind = io.Int if isinstance(knob.default, int) else io.Float
    return kind.Input(knob.name, min=knob.min, max=knob.max, step=knob.step, **common)


def method_input(methods, name="method", none=None):
    """A choice among registry entries; each shows its own knobs beneath. ``execute`` gets one dict: see ``chosen``.

    With ``none``, a sentence that says what then happens, the first choice is "none".
    """
    lines = [f"{key}: {method.title}, {method.source}. Good for {method.good_for}." for key, method in methods.items()]
    options = [io.DynamicCombo.Option(key, list(map(knob_input, method.knobs))) for key, method in methods.items()]
    if none:
        lines, options = [f"none: {none}", *lines], [io.DynamicCombo.Option("none", []), *options]
    return io.DynamicCombo.Input(name, options=options, tooltip="\n".join(lines))


def chosen(method, methods, name="method"):
    """The registry entry and all its knobs, from the dict that ComfyUI makes of a ``method_input``."""
    entry = methods[method[name]]
    return entry, complete(entry.knobs, {key: value for key, value in method.items() if key != name})


def family(registry, name):
    return {key: entry for key, entry in registry.items() if entry.family == name}
