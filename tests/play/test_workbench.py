"""What the page does, without a browser and without Gradio: a session in, the next session and HTML out."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import foveate
from foveate.asking import ask
from foveate.errors import FoveateError
from foveate.files import write_json
from foveate.play import html
from foveate.play.controls import controls_of, written_by
from foveate.play.costs import Call, predicted
from foveate.play.figures import kept_figures, saliency_figures, saliency_values
from foveate.play.pictures import EXAMPLES, UPLOAD, Picture, generated, uploaded
from foveate.play.player import Player, Players
from foveate.play.results import Point, _with_best, found_results
from foveate.play.state import PageState, as_command, as_python, link_of, state_of
from foveate.play.workbench import Session, Workbench

SCENE = "shapes-3"


@pytest.fixture(scope="module")
def player() -> Player:
    torch.set_num_threads(1)
    return Player(*foveate.reference(), "the embedded model", max_new_tokens=4)


@pytest.fixture(scope="module")
def bench(player: Player) -> Workbench:
    return Workbench(Players(player))


@pytest.fixture
def session(bench: Workbench) -> Session:
    return bench.opened(PageState(source=SCENE, specs=("cluster:64", "", "")))[0]


# Specs and their controls


@pytest.mark.parametrize(
    "text",
    ["cluster:64", "cluster:0.25:start=plusplus:seed=3@features", "resize:0.25+fastv:0.5:rows=text@3", "prumerge:auto"],
)
def test_controls_write_the_spec_that_they_show(player: Player, text: str) -> None:
    shown = controls_of(text, player.family, 576)
    fields = {name: getattr(shown, name) for name in ("before", "method", "place", "layers", "tokens", "most", "auto")}
    fields["options"] = {each.name: each.value for each in shown.options if not each.unchanged}
    assert written_by(fields, player.family, text) == text
    if shown.takes_keep and not shown.auto:
        assert f":{shown.tokens + 1}" in written_by(fields | {"tokens": shown.tokens + 1}, player.family, text)


def test_another_method_keeps_the_budget_and_acts_where_it_acts_by_default(player: Player) -> None:
    fields = {"method": "pyramiddrop", "place": "features", "tokens": 96, "options": {"seed": "3"}}
    assert written_by(fields, player.family, "cluster:96:seed=3@features") == "pyramiddrop:96@3,6,9"
    assert written_by({"method": ""}, player.family, "cluster:96") == ""
    # What can't be read stays as it was put together, so that its error shows the place.
    broken = {"method": "cluster", "place": "input", "tokens": 9, "options": {"seed": "x"}}
    assert written_by(broken, player.family, "cluster:9") == "cluster:9:seed=x"


# Answers


def test_a_picture_is_encoded_once_for_all_specs_before_the_decoder_and_inside_it(player: Player) -> None:
    picture = generated("shapes-11")
    question = picture.questions[0][0]
    for spec in ("", "cluster:64", "cls:0.25@features", "holov:64", "prumerge:auto", "fastv:0.25@2", "cdpruner:32"):
        assert player.ask(picture, question, spec).encodings == 1, spec
    own = player.ask(picture, question, "resize:0.25")
    assert own.own_encoding
    assert own.encodings == 2


def test_an_answer_is_that_of_the_library(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.asking._MOST_RUNS", 1)
    picture = generated(SCENE)
    question = picture.questions[4][0]
    inputs = player.prompt(picture, question).inputs
    for spec in ("cluster:64", "pyramiddrop:0.1@2,6", "tome:64@encoder"):
        reply = player.ask(picture, question, spec)
        own = ask(player.model, player.processor, inputs, spec, 4)
        assert (reply.text, reply.before, reply.after) == (own.text, own.tokens_before, own.tokens_after)
        assert reply.mean_over_layers == pytest.approx(own.mean_over_layers)
    assert player.ask(picture, question).cache > 5 * reply.cache


def test_answers_side_by_side(bench: Workbench, session: Session) -> None:
    session = session.with_spec(1, "clustre:64").with_spec(2, "cluster:577")
    shown = bench.ask(session)
    assert len(re.findall('<section class="fv-card', shown)) == 4
    assert "no method is called &#34;clustre&#34;; did you mean &#34;cluster&#34;?" in shown
    assert "keep 577 is more than the 576 tokens there are" in shown
    assert "<b>64</b> of 576 tokens" in shown
    few = replace(session, picture=replace(session.picture, questions=session.picture.questions[:2]))
    assert re.search(r"<b>\d of 2</b> answers as dense", bench.ask(bench.loyalty(few)))


def test_what_visitors_write_is_escaped(bench: Workbench, session: Session) -> None:
    evil = '<img src=x onerror=alert(1)>{{7*7}}${7*7}"'
    session = bench.with_question(session, evil).with_spec(0, evil)
    for shown in (bench.ask(session), bench.questions(session), bench.cost(session), *bench.see(session)):
        assert "<img src=x" not in shown
    assert "&lt;img src=x" in bench.ask(session)
    picture = Picture("key", UPLOAD, evil, Image.new("RGB", (40, 30)))
    assert "<img src=x" not in html.picture_html(picture, "576 tokens")


def test_two_visitors_have_their_own_sessions(bench: Workbench, session: Session) -> None:
    other = bench.with_source(session, EXAMPLES["words"]).with_spec(0, "cls:16")
    assert (session.picture.source, session.state.specs[0]) == (SCENE, "cluster:64")
    assert (other.picture.source, other.state.specs[0]) == (EXAMPLES["words"], "cls:16")
    assert other.state.question in [text for text, _ in other.picture.questions]


def test_a_file_of_a_visitor(
    bench: Workbench, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated(SCENE).frames[0].save(tmp_path / "mine.png")
    mine = bench.with_file(session, tmp_path / "mine.png")
    assert mine.state.source == UPLOAD
    assert "yes" in bench.ask(bench.with_question(mine, "is there a cross ?"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FoveateError, match="is not an image, whatever its name says"):
        uploaded(tmp_path / "text.png")
    monkeypatch.setattr("foveate.play.pictures.MOST_PIXELS", 1_000)
    with pytest.raises(FoveateError, match="192 x 192 pixels, and the limit is 1,000"):
        uploaded(tmp_path / "mine.png")


def test_an_image_model_takes_a_clip_as_images(bench: Workbench, session: Session) -> None:
    whole = generated("clip-camera-3")
    short = replace(whole, key="short", visual=replace(whole.visual, frames=whole.frames[:2], times=(0.5, 1.5)))
    clip = replace(session, picture=short)
    assert "1,152 visual tokens, as 2 images" in bench.picture(clip)
    assert "<b>128</b> of 1,152 tokens" in bench.ask(clip)
    kept, _ = bench.see(clip)
    assert len(re.findall("data-tokens", kept)) == 2
    with pytest.raises(FoveateError, match=r"8 frames: prompt and answer take .* take a shorter clip"):
        bench.player(clip).tokens(whole)


# See


def test_where_every_token_went(player: Player, session: Session) -> None:
    reply = player.ask(session.picture, session.state.question, "cluster:64")
    kept = kept_figures(player, session.picture, reply)
    assert (kept.tokens, kept.kept, kept.merges) == (576, 64, True)
    assert len(set(kept.into)) == 64
    assert all(kept.into[target] == target for target in kept.into)
    inside = player.ask(session.picture, session.state.question, "pyramiddrop:0.5@3,6,9")
    counts = [kept_figures(player, session.picture, inside, layer).kept for layer in (0, 3, 6, 11)]
    assert counts == [576, 288, 144, 72]
    assert -1 in kept_figures(player, session.picture, inside, 11).into


def test_saliency_is_what_methods_read(player: Player, session: Session) -> None:
    """fastv keeps what the layer before attends to most, and cls what the encoder does: the lit places are these."""
    asked = (session.picture, session.state.question)
    for part, layer, spec in (
        ("encoder", 4, "cls:32:layer=4"),
        ("decoder", 2, "fastv:32@3"),
        ("decoder", 0, "fastv:32@1"),
    ):
        (values,) = saliency_values(player, *asked, part, layer)
        (plans,) = player.ask(*asked, spec).plans
        assert plans.kept().tolist() == sorted(values.topk(32).indices.tolist()), part
        (figure,) = saliency_figures(player, *asked, part, layer)
        assert figure.picture.size == (576, 576)
    with pytest.raises(FoveateError, match="decoder layer 12 can't be watched; choose one from 0 to 11"):
        saliency_values(player, *asked, "decoder", 12)


# Cost, results, links


def test_costs_are_those_of_the_cost_model() -> None:
    bars = predicted(Call("llava-1.5-7b", "a100", 336, 336), ["cluster:64", "evs:0.5"])
    own = foveate.cost("llava-1.5-7b", "cluster:64", device="a100")
    assert bars.rows[1].total == pytest.approx(own.seconds * 1e3)
    assert bars.rows[1].cache == own.kv_bytes
    assert "evs works on the frames of a clip" in bars.rows[2].error
    assert "llava-1.5-7b" in html.bars_html(bars, "Predicted")


def test_the_front_of_results() -> None:
    rows = [("dense", 576, 0.9), ("a", 64, 0.8), ("b", 64, 0.7), ("c", 144, 0.75), ("d", 16, 0.5)]
    points = [Point(name, name, False, tokens, share, None, None, 1.0, None) for name, tokens, share in rows]
    assert [point.spec for point in _with_best(points) if point.best] == ["dense", "a", "d"]


def test_results_are_found(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match="holds no finished results; foveate bench --out"):
        found_results(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("metrics", "config"):
        write_json(tmp_path / "mine" / f"{name}.json", {})
    assert list(found_results(tmp_path)) == ["mine"]


def test_a_link_holds_the_state() -> None:
    call = Call("llava-1.5-7b", "a100", 336, 672, 5, 6, 7)
    state = PageState("chart-7", "ü & ? #", ("cls:0.5@features", "fastv:0.5@2", "x+y"), 2, 3, "decoder", call, "see")
    assert state_of(link_of(state)) == state
    assert state_of("layer=x&shown=99&tab=gone&size=9&spec=") == PageState(specs=("", "", ""), shown=2)


def test_a_link_that_leads_nowhere_says_so(bench: Workbench) -> None:
    session, said = bench.opened(state_of("picture=gone-1&q=why"))
    assert "no picture is called 'gone-1'" in said
    assert session.picture.source == PageState().source
    assert "can't hold a file of yours" in bench.opened(state_of(f"picture={UPLOAD}"))[1]


def test_what_is_copied_runs(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(as_python(session.state), "copied", "exec"), {})
    assert "576 -> 64 visual tokens" in capsys.readouterr().out
    assert as_command(session.state, "org/name", "a b.png") == (
        "foveate ask 'a b.png' 'is there a cross ?' --spec cluster:64 --model org/name"
    )
