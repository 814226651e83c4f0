"""What happens on the page, without the page: a visitor's session in, the next session and HTML out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from PIL import Image

from foveate import costmodel
from foveate.errors import FoveateError, shortened
from foveate.play import html
from foveate.play.controls import Controls, controls_of, written_by
from foveate.play.costs import Bars, Call, Row, measured, predicted
from foveate.play.figures import Figure, encoder_layers, kept_figures, saliency_figures, sheet
from foveate.play.pictures import UPLOAD, Picture, generated, uploaded
from foveate.play.player import Player, Players, Reply
from foveate.play.results import Results, failures, read_results
from foveate.play.state import PageState, as_command, as_python
from foveate.prompts import check_question
from foveate.schedule import last_layer

__all__ = ["Session", "Workbench", "call_of"]

_THUMB: Final = 300
_LONGEST_QUESTION: Final = 4_000


@dataclass(frozen=True)
class Session:
    """What one visitor sees; nobody else's changes it.

    Attributes:
        state: what is chosen.
        picture: what is asked about.
        loyal: whether all questions of the picture were asked.
    """

    state: PageState
    picture: Picture
    loyal: bool = False

    def having(self, **values: Any) -> Session:
        """Return the session with other values of its state."""
        return replace(self, state=replace(self.state, **values))

    def with_spec(self, slot: int, spec: str) -> Session:
        """Return the session with another spec in one place."""
        specs = list(self.state.specs)
        specs[slot] = spec.strip()
        return self.having(specs=tuple(specs))


class Workbench:
    """Answers for a page.

    Args:
        players: the model, or the two.
        model: what was loaded, for commands that are copied; None is the embedded model.
        results: finished results by their names.
    """

    def __init__(self, players: Players, model: str | None = None, results: Mapping[str, Path] | None = None) -> None:
        self.players, self.model = players, model
        self.results = dict(results or {})
        self._read: Callable[[str], Results] = lru_cache(8)(lambda name: read_results(self.results[name]))

    def player(self, session: Session) -> Player:
        """Return the model that answers about the picture."""
        return self.players.of(session.picture)

    # Sessions

    def opened(self, state: PageState) -> tuple[Session, str]:
        """Return the session that a link asks for, and why it isn't quite that; "" if it is."""
        usual, said = PageState(), ""
        try:
            if state.source == UPLOAD:
                raise FoveateError("a link can't hold a file of yours; drop it here again")
            picture = generated(state.source)
            self.players.of(picture).tokens(picture)
        except FoveateError as error:
            said = str(error)
            state = replace(state, source=usual.source, question="")
            picture = generated(usual.source)
        return self._asked(Session(state, picture), state.question), said

    def with_source(self, session: Session, source: str) -> Session:
        """Return a session about a generated picture.

        Raises:
            FoveateError: there is no such picture, or the model can't take it.
        """
        return self._with_picture(session, generated(source))

    def with_file(self, session: Session, path: str | Path) -> Session:
        """Return a session about a file.

        Raises:
            FoveateError: it can't be opened, is too large, or the model can't take it.
        """
        return self._with_picture(session, uploaded(path))

    def with_question(self, session: Session, question: str) -> Session:
        """Return a session with another question.

        Raises:
            FoveateError: it is empty or too long.
        """
        if len(question) > _LONGEST_QUESTION:
            raise FoveateError(f"the question has {len(question):,} characters, and the limit is {_LONGEST_QUESTION:,}")
        return session.having(question=check_question(question))

    def another(self, session: Session) -> str:
        """Return the source of the next picture of the same kind."""
        kind, _, seed = session.state.source.rpartition("-")
        return f"{kind}-{int(seed) + 1}" if seed.isdigit() else "shapes-1"

    def _with_picture(self, session: Session, picture: Picture) -> Session:
        self.players.of(picture).tokens(picture)
        return self._asked(replace(session.having(source=picture.source), picture=picture, loyal=False), "")

    def _asked(self, session: Session, question: str) -> Session:
        texts = [text for text, _ in session.picture.questions]
        kept = question or session.state.question
        if not question and texts and kept not in texts:
            kept = texts[0]
        return session.having(question=kept or "what is in the picture ?")

    # What is asked about

    def picture(self, session: Session) -> str:
        """Return the picture with its facts."""
        player, picture = self.player(session), session.picture
        tokens = sum(layout.total for layout in player.layouts(picture))
        how = f"{tokens:,} visual tokens"
        if picture.is_clip:
            taken = "as a video" if player.takes_clips(picture) else f"as {len(picture.frames)} images"
            how += f", {taken}"
        return html.picture_html(picture, how)

    def questions(self, session: Session) -> str:
        """Return questions to choose from."""
        return html.questions_html(session.picture, session.state.question)

    # Specs

    def controls(self, session: Session, slot: int, opened: bool = False) -> str | None:
        """Return the controls of one spec; None if it can't be read, so that they stay as they are."""
        found = self._controls(session, slot)
        return None if found is None else html.controls_html(found, html.LETTERS[slot], opened)

    def with_controls(self, session: Session, slot: int, fields: Mapping[str, Any]) -> Session:
        """Return a session in which one spec is what its controls write."""
        return session.with_spec(slot, written_by(fields, self.player(session).family, session.state.specs[slot]))

    def _controls(self, session: Session, slot: int) -> Controls | None:
        player = self.player(session)
        tokens, clips = player.tokens(session.picture), player.takes_clips(session.picture)
        try:
            return controls_of(session.state.specs[slot], player.family, tokens, clip=clips)
        except FoveateError:
            return None

    # Ask

    def replies(self, session: Session) -> tuple[Reply | FoveateError | None, ...]:
        """Return the answer of the dense model, and for each spec its answer, why there is none, or None if unused."""
        player, found = self.player(session), []
        for spec in ("", *session.state.specs):
            if found and not spec.strip():
                found.append(None)
                continue
            try:
                found.append(player.ask(session.picture, session.state.question, spec))
            except FoveateError as error:
                found.append(error)
        return tuple(found)

    def ask(self, session: Session) -> str:
        """Return the answers side by side."""
        player, picture = self.player(session), session.picture
        answers = []
        for number, reply in enumerate(self.replies(session)):
            if reply is None:
                continue
            letter = html.LETTERS[number - 1] if number else ""
            spec = session.state.specs[number - 1] if number else ""
            if isinstance(reply, FoveateError):
                answers.append(html.Answer(letter, spec, error=str(reply)))
                continue
            image = self._thumbnail(session, reply)
            loyalty = player.loyalty(picture, spec) if session.loyal else None
            answers.append(html.Answer(letter, spec, reply, image=image, loyalty=loyalty))
        right = dict(picture.questions).get(session.state.question)
        return html.answers_html(answers, right, f"{player.where}")

    def loyalty(self, session: Session) -> Session:
        """Return a session whose answers say how all questions of the picture are answered.

        Raises:
            FoveateError: no questions with answers belong to the picture.
        """
        if not session.picture.questions:
            raise FoveateError("only generated pictures have questions with answers; choose an example")
        return replace(session, loyal=True)

    def _thumbnail(self, session: Session, reply: Reply) -> Image.Image | None:
        player = self.player(session)
        if not player.family.knows_grids:
            return None
        drawn = [each.picture for each in kept_figures(player, session.picture, reply, side=_THUMB).figures]
        if not session.picture.is_clip:
            return drawn[0]
        # A contact sheet, four frames in a row.
        small = [each.resize((150, round(150 * each.height / each.width)), Image.Resampling.LANCZOS) for each in drawn]
        rows = -(-len(small) // 4)
        made = Image.new("RGB", (4 * 150, rows * small[0].height))
        for number, each in enumerate(small):
            made.paste(each, (number % 4 * 150, number // 4 * small[0].height))
        return made

    # See

    def shown(self, session: Session) -> int:
        """Return which spec the pictures show: the one that is chosen, or the first that is used."""
        used = [number for number, spec in enumerate(session.state.specs) if spec.strip()]
        return session.state.shown if session.state.shown in used else (used[0] if used else 0)

    def layer(self, session: Session) -> int:
        """Return the layer that the pictures show."""
        most = self.layers(session) - 1
        return most if session.state.layer < 0 else min(session.state.layer, most)

    def layers(self, session: Session) -> int:
        """Return how many layers there are to choose from."""
        player = self.player(session)
        if session.state.saliency == "encoder":
            return encoder_layers(player)
        return last_layer(player.family) + 1 if session.state.saliency else player.depth

    def see(self, session: Session) -> tuple[str, str]:
        """Return the pictures of what is kept or looked at, and the tokens of each decoder layer."""
        player, picture, question = self.player(session), session.picture, session.state.question
        slot, layer = self.shown(session), self.layer(session)
        spec = session.state.specs[slot]
        try:
            if not player.family.knows_grids:
                raise FoveateError(f"where the tokens of {player.family.title} are in the picture is unknown")
            reply = player.ask(picture, question, spec)
            bars = html.layers_html(reply.layers, -1 if session.state.saliency == "encoder" else layer)
            if session.state.saliency:
                part = session.state.saliency
                figures: Sequence[Figure] = saliency_figures(player, picture, question, part, layer)
                whose = "[CLS], or all tokens," if part == "encoder" else "the last token of the question"
                lead = f"attention from {whose} in {part} layer {layer}: the brighter, the more"
                return html.figures_html(figures, "dense", lead), bars
            kept = kept_figures(player, picture, reply, layer)
            return html.kept_html(kept, reply.spec, layer), bars
        except FoveateError as error:
            return html.error_html(error), ""

    # Cost

    def cost(self, session: Session) -> str:
        """Return what the answers took here, and what the specs would cost elsewhere."""
        player = self.player(session)
        rows: list[Reply | Row] = []
        for number, reply in enumerate(self.replies(session)):
            if isinstance(reply, FoveateError):
                rows.append(Row(session.state.specs[number - 1] if number else "dense", error=str(reply)))
            elif reply is not None:
                rows.append(reply)
        here = measured(player.title, player.where, rows)
        return html.bars_html(self.predicted(session), "Predicted") + html.bars_html(here, "Measured here")

    def predicted(self, session: Session) -> Bars:
        """Predict what the specs cost for the model and the device that are chosen; a refusal is a row."""
        specs = [spec for spec in session.state.specs if spec.strip()]
        try:
            return predicted(session.state.call, specs)
        except FoveateError as error:
            return Bars("", (Row("dense", error=str(error)),), "")

    def devices(self) -> list[tuple[str, str]]:
        """Return the devices of the table, as titles and names."""
        return [(each.title, name) for name, each in costmodel.devices().items()]

    # Compare

    def compare(self, name: str, chosen: str = "") -> tuple[str, str]:
        """Return the plot of a results folder, and the wrong answers of a configuration."""
        try:
            results = self._read(name)
            if not chosen:
                return html.plot_html(results), ""
            rows, count = failures(results, chosen)
            return html.plot_html(results, chosen), html.failures_html(rows, count, chosen)
        except KeyError:
            return html.error_html(f"no results are called {shortened(name)}"), ""
        except FoveateError as error:
            return html.error_html(error), ""

    # Share

    def command(self, session: Session) -> str:
        """Return the command that asks the same."""
        if session.picture.is_clip and self.model is None:
            return "# the embedded model for clips has no command; copy it as Python"
        return as_command(session.state, self.model, self._file(session))

    def python(self, session: Session) -> str:
        """Return Python that asks the same."""
        return as_python(session.state, self.model, self._file(session))

    def download(self, session: Session) -> Image.Image:
        """Draw all answers side by side, as `foveate ask --picture` does.

        Raises:
            FoveateError: the dense model can't answer, or where tokens are in the picture is unknown.
        """
        player = self.player(session)
        if not player.family.knows_grids:
            raise FoveateError(f"where the tokens of {player.family.title} are in the picture is unknown")
        replies = self.replies(session)
        if isinstance(replies[0], FoveateError):
            raise replies[0]
        return sheet(player, session.picture, session.state.question, [r for r in replies if isinstance(r, Reply)])

    @staticmethod
    def _file(session: Session) -> str:
        if session.state.source != UPLOAD:
            return f"{session.state.source}.png"
        return session.picture.title.partition(",")[0]


def call_of(**values: Any) -> Call:
    """Return a call whose cost is asked for, from values of the page; what is left out is at its default."""
    return Call(**{name: value for name, value in values.items() if value not in (None, "")})
