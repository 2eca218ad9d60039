"""The parts of the notebook's explorer that run the model again: steering with a feature, comparing SAEs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import ipywidgets as widgets

from prism.explorer import answers
from prism.explorer.panels import WIDE, WRAP, attempt, button, words
from prism.explorer.session import Explorer
from prism.explorer.steer import EXAMPLES, HOWS, MAX_NEW_TOKENS, OFFERED, STRENGTH, Example


class Trial(widgets.VBox):
    """Settings, a button with a verb, and what `answer` makes of them; a mistake is a sentence above what was there."""

    def __init__(self, settings: list[widgets.Widget], verb: str) -> None:
        self.note, self.shown = widgets.HTML(), widgets.HTML()
        self.button = button(verb, self.run, width="90px", kind="primary")
        super().__init__([*settings, self.button, self.note, self.shown])

    def run(self) -> None:
        """Do what the settings say; while it runs, the button cannot be pressed again."""
        self.button.disabled, self.note.value = True, words("working …")
        try:
            if attempt(self.note, self._run):
                self.note.value = ""
        finally:
            self.button.disabled = False

    def _run(self) -> None:
        for html in self.answer():
            self.shown.value = html


class SteerPanel(Trial):
    """The model goes on from a prompt: unchanged, with a feature changed, with a control of the same kind."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self.sae = explorer, explorer.default
        self.prompt = widgets.Textarea(answers.PROMPT, rows=2, layout=WIDE, tooltip="prompt")
        self.feature = widgets.IntText(0, description="feature", layout={"width": "170px"})
        self.how = widgets.Dropdown(options=HOWS, description="how", layout={"width": "190px"})
        self.strength = widgets.FloatSlider(
            STRENGTH,
            min=-OFFERED,
            max=OFFERED,
            step=0.25,
            layout=WIDE,
            description="strength",
            readout_format=".2f",
            tooltip="× the feature's largest activation in the sample",
        )
        self.tokens = widgets.IntSlider(30, min=1, max=MAX_NEW_TOKENS, description="tokens", layout=WIDE)
        self.temperature = widgets.FloatSlider(
            0.7, min=0, max=2, step=0.1, description="temp.", layout=WIDE, readout_format=".1f", tooltip="temperature"
        )
        self.seed = widgets.BoundedIntText(0, max=2**31 - 1, description="seed", layout={"width": "170px"})
        more = [self.how, self.tokens, self.temperature, self.seed]
        for widget in [self.feature, self.strength, *more]:
            widget.style.description_width = "62px"
        prepared = EXAMPLES.get(explorer.spec.name, ())
        self.examples = [button(one.title, partial(self.prepare, one), one.prompt) for one in prepared]
        folded = widgets.Accordion([widgets.VBox(more)], titles=["More settings"])
        offered = [widgets.HTML(words(answers.PREPARED)), widgets.HBox(self.examples, layout=WRAP)] if prepared else []
        super().__init__([*offered, self.prompt, self.feature, self.strength, folded], "Write")

    def prepare(self, one: Example) -> None:
        """Ask a prepared question."""
        self.prompt.value, self.how.value, self.strength.value = one.prompt, HOWS[0], one.strength
        self.follow(one.sae, one.feature)
        self.run()

    def follow(self, sae: str, feature: int) -> None:
        """Steer with the feature that is looked at."""
        self.sae, self.feature.value = sae, feature

    def answer(self) -> Iterator[str]:
        """The three continuations."""
        yield answers.write(
            self.explorer,
            self.prompt.value,
            self.feature.value,
            self.how.value,
            self.strength.value,
            self.tokens.value,
            self.temperature.value,
            self.seed.value,
            self.sae,
        )


class ComparePanel(Trial):
    """What each of some SAEs keeps of a text, and which of its features are strongest there."""

    def __init__(self, explorer: Explorer, text: str) -> None:
        self.explorer = explorer
        self.text = widgets.Textarea(text, rows=3, layout=WIDE, tooltip="the text")
        self.boxes = [
            widgets.Checkbox(place < 3, description=name, indent=False, layout={"width": "150px"})
            for place, name in enumerate(explorer.names)
        ]
        super().__init__([self.text, widgets.HBox(self.boxes, layout=WRAP)], "Compare")

    def answer(self) -> Iterator[str]:
        """The measures, then one SAE's features after another's."""
        chosen = [box.description for box in self.boxes if box.value]
        return answers.compare(self.explorer, self.text.value, chosen, buttons=False)
