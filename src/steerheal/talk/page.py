"""The conversation as a local web page; the only module that knows Gradio.

A browser keeps its conversation and its settings to itself; what it asks waits until the model is
free. Nothing is fetched from elsewhere and nothing is reported to anybody.
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read as Gradio is imported

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from html import escape
from threading import Event
from typing import Any

import gradio as gr
from gradio.themes import Base

from steerheal.bounds import MOST_TEXT
from steerheal.config import SamplingSettings
from steerheal.console import printable
from steerheal.errors import UserError
from steerheal.talk.stream import streamed
from steerheal.talk.talk import Said, Side, Talk, Watch, facing
from steerheal.talk.voices import Voices

PLACES = ("left", "right")
MOST_TOKENS, MOST_GATE, DOSES = 512, 2.0, 4
"""Ends of the sliders; that of a dose is this many times the largest of the run's own."""
WAITING = 100
"""Requests that may wait at once."""
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
HELP = (
    "Both sides are asked the same with the same seed. A side that is changed answers its whole "
    "conversation anew. Gate 0 is the base; the dose is that of a vector."
)
Sides = dict[str, Side]


@dataclass(frozen=True)
class Asked:
    """How a browser has set what both sides share."""

    seed: int
    tokens: int
    temperature: float


@dataclass(frozen=True)
class Column:
    """What one side has on the page."""

    who: gr.Dropdown
    gate: gr.Slider
    dose: gr.Slider
    talk: gr.Chatbot
    read: gr.Textbox


class Page:
    """The page of a run, and what its buttons do."""

    def __init__(self, voices: Voices, asked: Asked) -> None:
        self._voices, self._stops = voices, dict[str, Event]()
        persona = voices.persona
        title = f"{persona.name}: {voices.folder.name}"
        with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as self.blocks:
            gr.HTML(f"<h1>{escape(title)}</h1><p>{escape(voices.chat.name)}. {HELP}</p>")
            self._sides = gr.State(facing(voices))
            with gr.Row():
                self._columns = {place: self._column(place) for place in PLACES}
            self._message = gr.Textbox(
                label="message", elem_id="message", max_length=MOST_TEXT, autofocus=True
            )
            with gr.Row():
                send = gr.Button("Send", variant="primary", elem_id="send")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
                new = gr.Button("New conversation", elem_id="new")
            gr.Examples(list(persona.prompts.show), self._message, label="show prompts")
            with gr.Accordion("sampling", open=False):
                self._seed = gr.Number(
                    asked.seed, label="seed of the first answers", precision=0, minimum=0
                )
                self._tokens = gr.Slider(1, MOST_TOKENS, asked.tokens, step=1, label="tokens")
                self._temperature = gr.Slider(
                    0, 2, asked.temperature, step=0.05, label="temperature"
                )
            self._wire(send, stop, new)

    def _column(self, place: str) -> Column:
        voices, side = self._voices, facing(self._voices)[place]
        own = [voices.own_dose(number + 1) for number in range(len(voices.record.rounds))]
        with gr.Column():
            who = gr.Dropdown(voices.names(), value=side.who, label=place, elem_id=f"{place}-who")
            with gr.Row():
                gate = gr.Slider(
                    0, MOST_GATE, side.gate, step=0.05, label="gate", elem_id=f"{place}-gate"
                )
                dose = gr.Slider(
                    *(0, DOSES * max(own), voices.own_dose(voices.last)),
                    step=0.05,
                    label="dose",
                    elem_id=f"{place}-dose",
                )
            talk = gr.Chatbot(
                label=place,
                elem_id=f"{place}-talk",
                render_markdown=False,
                allow_file_downloads=False,
                buttons=[],
                height=420,
            )
            read = gr.Textbox(label="what the base makes of it", lines=2, elem_id=f"{place}-read")
        return Column(who, gate, dose, talk, read)

    def _wire(self, send: gr.Button, stop: gr.Button, new: gr.Button) -> None:
        dials = [dial for one in self._columns.values() for dial in (one.who, one.gate, one.dose)]
        given = {self._message, self._sides, self._seed, self._tokens, self._temperature, *dials}
        changed = [
            *(self._message, self._sides),
            *(part for one in self._columns.values() for part in (one.talk, one.read)),
        ]
        alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        sent = [send.click, self._message.submit]
        gr.on(sent, self._said, given, changed, api_name="send", **alone)
        for place, one in self._columns.items():
            triggers = [one.who.input, one.gate.release, one.dose.release]
            again = self._again(place)
            gr.on(triggers, again, given, changed, api_name=f"again-{place}", **alone)
        gr.on([new.click], self._afresh, given, changed, api_name="new", **alone)
        gr.on([stop.click], self._stopped, None, None, api_name="stop", queue=False)

    def _talk(self, data: dict[Any, Any], *places: str) -> Talk:
        """A browser's conversation, with these sides as its page has set them."""
        turns = len(data[self._sides]["left"].replies)
        sampling = SamplingSettings(tokens=data[self._tokens], temperature=data[self._temperature])
        sides: Sides = deepcopy(data[self._sides])
        for place in places:
            one = self._columns[place]
            side = sides[place]
            side.who, side.gate, side.dose = data[one.who], data[one.gate], data[one.dose]
        return Talk(self._voices, sampling, int(data[self._seed] or 0) + turns, sides)

    def _said(self, data: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        talk, text = self._talk(data, *PLACES), data[self._message].strip()
        if text:
            cleared = {self._message: ""}  # once: the next message may be in the making
            for shown in self._streamed(talk, lambda watch: talk.say(text, watch), request):
                yield {**shown, **cleared}
                cleared = {}

    def _again(self, place: str) -> Callable[..., Iterator[dict[Any, Any]]]:
        def again(data: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
            talk = self._talk(data, place)
            yield from self._streamed(talk, lambda watch: talk.again(place, watch), request)

        return again

    def _streamed(
        self, talk: Talk, work: Callable[[Watch], object], request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        session = str(request.session_hash)
        stop = self._stops[session] = Event()
        try:
            for said in streamed(work, stop):
                yield self._shown(talk, said)
        except UserError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error
        finally:
            self._stops.pop(session, None)
        yield {self._sides: talk.sides, **self._shown(talk, {})}

    def _shown(self, talk: Talk, said: Said) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        for place, side in talk.sides.items():
            turns = said.get(place, side.before)
            one = self._columns[place]
            # Gradio takes what is in angle brackets for markup: what is written stays text.
            out[one.talk] = [
                {"role": role, "content": escape(printable(text), quote=False)}
                for role, text in turns
            ]
            out[one.read] = "\n".join(f"{reply.state}: {reply.words}" for reply in side.replies)
        return out

    def _afresh(self, data: dict[Any, Any]) -> dict[Any, Any]:
        talk = self._talk(data, *PLACES)
        talk.afresh()
        return {self._sides: talk.sides, **self._shown(talk, {})}

    def _stopped(self, request: gr.Request) -> None:
        if stop := self._stops.get(str(request.session_hash)):
            stop.set()


def opened(voices: Voices, asked: Asked, *, host: str, port: int) -> tuple[gr.Blocks, str]:
    """The page, served from threads of its own until it is closed, and its address.

    Raises:
        UserError: it cannot be served there any more.
    """
    page = Page(voices, asked).blocks
    plain, mono = FONTS
    page.queue(max_size=WAITING)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            show_error=True,
            footer_links=[],
            run_history=False,
            theme=Base(font=plain, font_mono=mono),
        )
    except OSError as error:
        raise UserError(f"The page cannot be served at {host}:{port}: {error}") from error
    return page, address
