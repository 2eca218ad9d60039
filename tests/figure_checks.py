"""What every figure has: a title, a size, and axes that say what they show."""

import re

import plotly.graph_objects as go

from prism import visualization as viz


def titled(fig: go.Figure, *axes: str) -> go.Figure:
    """The figure, once it is known to be one with a title and with these axis titles."""
    assert isinstance(fig, go.Figure)
    assert fig.layout.title.text
    assert fig.layout.width == viz.style.WIDTH and fig.layout.height >= 300
    found = [getattr(fig.layout[axis].title, "text", None) for axis in fig.layout if re.match("[xy]axis", axis)]
    for axis in axes:
        assert any(axis in (text or "") for text in found), (axis, found)
    return fig
