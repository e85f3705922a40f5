"""Settings forms from config.py, built by magicgui: title, range and help come from the fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from magicgui.widgets import Container, create_widget
from pydantic import BaseModel


def settings_form(model: type[BaseModel], names: Sequence[str]) -> Container[Any]:
    """A form for some fields of a settings model; read it with :func:`form_values`."""
    widgets = []
    for name in names:
        info = model.model_fields[name]
        bounds = {}
        for constraint in info.metadata:
            for bound, option in (("ge", "min"), ("le", "max")):
                if (value := getattr(constraint, bound, None)) is not None:
                    bounds[option] = value
        options = {key: min(value, 2**31 - 1) for key, value in bounds.items()}
        widget = create_widget(
            value=info.get_default(), annotation=info.annotation, name=name, label=info.title, options=options
        )
        widget.tooltip = info.description or info.title or name
        widgets.append(widget)
    return Container(widgets=widgets, labels=True)


def form_values(form: Container[Any]) -> dict[str, Any]:
    """Field name → value."""
    return {str(widget.name): widget.value for widget in form}
