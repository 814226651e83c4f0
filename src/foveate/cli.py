"""The commands: parse, call the library, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Only what --help needs: everything that imports torch is imported inside the commands.
import typer
from typer.core import TyperGroup

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.table import Table

    from foveate.asking import Answer

_INTERRUPTED = "interrupted; nothing half-written was left behind"


class _Commands(TyperGroup):
    """Commands whose foreseen errors are one clear line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except FoveateError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo(_INTERRUPTED, err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Commands,
    name="foveate",
    help="Fewer visual tokens for any Hugging Face vision-language model, and what that costs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="A local model directory.", show_default="the embedded model"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"foveate {version('foveate')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def ask(
    image: Annotated[Path, typer.Argument(help="Any image file.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask about it.", show_default=False)],
    model: ModelOption = None,
    spec: Annotated[
        list[str] | None,
        typer.Option("--spec", help="What to apply; may be given several times.", show_default="cluster:64"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw what is kept over the image.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="The longest answer.")] = 16,
    device: Annotated[
        str, typer.Option("--device", help="Where to run, for instance cpu or cuda.", show_default="cuda if any")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Ask a question about an image, dense and compressed side by side.

    Shows answers, visual tokens before and after, and the time of encoder, compressor, prefill and decode.
    """
    from foveate.images import open_image

    with _progress("Reading the image"):
        from foveate.asking import ask as answer_one
        from foveate.asking import check_question, image_layout, prompt
        from foveate.families import family_of
        from foveate.loading import load_model, load_processor, skeleton
        from foveate.schedule import tokens_after
        from foveate.spec import parse
        from foveate.view import writable

        # Everything that can be wrong is looked at before the model is loaded.
        question = check_question(question)
        specs = [parse(text) for text in spec or ["cluster:64"]]
        if picture is not None and writable(picture).resolve() == image.resolve():
            raise FoveateError(f"the picture would be written over {image}; choose another name")
        opened = open_image(image)
        place = _device(device)
        _quiet()
        processor, shell = load_processor(model), skeleton(model)
        inputs = prompt(processor, opened, question)
        layout = image_layout(shell, inputs)
        if picture is not None and not family_of(shell).knows_grids:
            raise FoveateError(
                f"where in the image the tokens of {family_of(shell).title} stand is not known, so no picture can be "
                "drawn; ask without --picture"
            )
        for each in specs:
            tokens_after(each, family_of(shell), layout)

    with _progress("Loading the model"):
        network = load_model(model).to(place)
    answers: list[Answer] = []
    for each in (None, *specs):
        with _progress(f"Asking: {each or 'dense'}"):
            answers.append(answer_one(network, processor, inputs, each, max_new_tokens))
    if picture is not None:
        with _progress("Drawing"):
            from foveate.view import save_picture

            save_picture(_drawn(network, processor, inputs, opened, question, specs, answers), picture)

    where = str(model) if model else "the embedded reference model"
    if as_json:
        import torch

        _print_json(
            {
                "image": str(image),
                "question": question,
                "model": where,
                "device": place,
                "dtype": str(network.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "answers": [each.to_dict() for each in answers],
                "picture": None if picture is None else str(picture),
            }
        )
        return
    console = _console()
    console.print(_answer_table(question, answers))
    dtype = str(network.dtype).removeprefix("torch.")
    console.print(f"{where}, {dtype} on {place}. Milliseconds of {_runs(answers)} after a warm-up.", style="dim")
    if picture is not None:
        console.print(f"Picture: {picture}", highlight=False)
    console.print("Everything as JSON: the same command with --json", style="dim", highlight=False)


@app.command()
def methods(as_json: JsonOption = False) -> None:
    """List the methods that specs can name."""
    from foveate.listing import listing

    rows = listing()
    if as_json:
        _print_json([row.to_dict() for row in rows])
        return
    table = _table("method", "what it does", "place", "positions", "reads question", "adaptive", "paper")
    for row in rows:
        table.add_row(
            f"[bold]{row.name}[/]",
            row.what,
            f"@{row.place}",
            row.positions,
            "yes" if row.query_aware else "no",
            "yes" if row.adaptive else "no",
            row.paper or "-",
        )
    console = _console()
    console.print(table)
    console.print("A spec is method:keep, for instance cluster:64, cls:0.25 or resize:0.5+cluster:64.", highlight=False)
    console.print("All options and their defaults: foveate methods --json", style="dim", highlight=False)


@app.command()
def count(
    image: Annotated[Path, typer.Argument(help="Any image file.", show_default=False)],
    model: ModelOption = None,
    spec: Annotated[
        list[str] | None, typer.Option("--spec", help="Count behind this too; may be given several times.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how many visual tokens an image costs, without running the model or needing its weights."""
    from foveate.images import open_image

    with _progress("Counting"):
        from foveate.asking import image_layout, prompt
        from foveate.families import family_of
        from foveate.loading import load_processor, skeleton
        from foveate.schedule import tokens_between, tokens_per_layer
        from foveate.spec import parse

        specs = [parse(text) for text in spec or []]
        opened = open_image(image)
        _quiet()
        processor, shell = load_processor(model), skeleton(model)
        layout = image_layout(shell, prompt(processor, opened, "?"))
        family = family_of(shell)
        after = [
            (str(each), *tokens_between(each, family, layout), tokens_per_layer(each, family, layout)) for each in specs
        ]
    grids = [(segment.t, segment.h, segment.w) for segment in layout.segments]
    where = str(model) if model else "the embedded reference model"
    if as_json:
        _print_json(
            {
                "image": str(image),
                "width": opened.width,
                "height": opened.height,
                "model": where,
                "grids": [list(grid) for grid in grids],
                "content": layout.content,
                "structural": len(layout.structural),
                "total": layout.total,
                "after": [
                    {
                        "spec": name,
                        "fewest": fewest,
                        "tokens": most,
                        "share": most / layout.total,
                        "mean_over_layers": sum(layers) / len(layers),
                        "layers": list(layers),
                    }
                    for name, fewest, most, layers in after
                ],
            }
        )
        return
    table = _table("spec", "grid", title=f"{image}, {opened.width} x {opened.height} pixels, in {where}")
    _numbers(table, "content", "structural", "visual tokens", "of dense", "mean over layers")
    grid = " + ".join(f"{h} x {w}" if t == 1 else f"{t} x {h} x {w}" for t, h, w in grids)
    whole = f"{layout.total}"
    table.add_row("dense", grid, f"{layout.content}", f"{len(layout.structural)}", whole, "100%", whole)
    for name, fewest, most, layers in after:
        # Where the content decides, the encoder would have to run to tell.
        ends = dict.fromkeys((fewest, most))
        shares = (f"{tokens / layout.total:.1%}" for tokens in ends)
        mean = f"{sum(layers) / len(layers):.1f}"
        table.add_row(name, "", "", "", " to ".join(map(str, ends)), " to ".join(shares), mean)
    console = _console()
    console.print(table)
    console.print("Everything as JSON: the same command with --json", style="dim", highlight=False)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench(context: typer.Context) -> None:
    """Measure accuracy per skill, tokens and time, against dense and the baselines."""
    # The command declares its own options; it is only imported when it is asked for.
    from foveate.bench.command import bench as command

    _hand_over(command, "foveate bench", context)


@app.command("find-layer")
def find_layer(
    rule: Annotated[str, typer.Argument(help="A spec without its layer, for instance vtw or pool:0.25.")] = "vtw",
    below: Annotated[float, typer.Option("--below", help="The largest mean divergence that counts as none.")] = 0.003,
    data: Annotated[
        Path | None,
        typer.Option(help='Your questions: a JSONL file of {"image", "question", "answer"}.', show_default="scenes"),
    ] = None,
    questions: Annotated[int, typer.Option("--questions", help="How many; each is about another image.")] = 20,
    model: ModelOption = None,
    device: Annotated[
        str, typer.Option("--device", help="Where to run, for instance cpu or cuda.", show_default="cuda if any")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find the decoder layer from which on a rule no longer moves the answer's first token."""
    with _progress("Reading the questions"):
        from foveate.bench.layers import find_layer as search
        from foveate.bench.layers import practice, rule_of
        from foveate.bench.tasks import jsonl
        from foveate.loading import load_model, load_processor

        # Everything that can be wrong is looked at before the model is loaded.
        rule = str(rule_of(rule).method)
        if not below >= 0:
            raise FoveateError(f"--below {below} can't be had; a divergence is 0 or more")
        asked = list(practice(questions)) if data is None else list(jsonl(data).pictures[:questions])
        place = _device(device)
        _quiet()
        processor = load_processor(model)
    with _progress("Loading the model"):
        network = load_model(model).to(place)
    with _bar() as advance:
        found = search(network, processor, rule, asked, below, advance)
    if as_json:
        _print_json({"model": str(model) if model else "the embedded reference model", **found.to_dict()})
        return
    table = _table(title=f"{found.rule} at the input of one layer, {found.questions} questions")
    _numbers(table, "layer", "divergence (nats)", "same first token")
    for effect in found.effects:
        mark = "bold" if found.layer is not None and effect.layer >= found.layer else ""
        table.add_row(f"{effect.layer}", f"{effect.divergence:.5f}", f"{effect.same:.0%}", style=mark)
    console = _console()
    console.print(table)
    if found.spec is None:
        console.print(f"At no layer does the divergence stay at most {below:g}.", highlight=False)
    else:
        console.print(f"{found.spec}: from there on the divergence stays at most {below:g}.", highlight=False)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def train(context: typer.Context) -> None:
    """Train a model under compression, by a recipe."""
    from foveate.train.command import train as command

    _hand_over(command, "foveate train", context)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def cost(context: typer.Context) -> None:
    """Tell FLOPs, cache, memory and time of a call from a model's configuration alone, dense and compressed."""
    from foveate.costmodel.command import cost as command

    _hand_over(command, "foveate cost", context)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def calibrate(context: typer.Context) -> None:
    """Measure this machine, so that the times of `foveate cost` are its own."""
    from foveate.costmodel.command import calibrate as command

    _hand_over(command, "foveate calibrate", context)


def _hand_over(command: Any, name: str, context: typer.Context) -> None:
    """Run a command that declares its own options."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(context_settings={"help_option_names": ["-h", "--help"]})(command)
    handed = typer.main.get_command(single)
    with handed.make_context(name, list(context.args)) as inner:
        handed.invoke(inner)


def main() -> None:
    """The entry point of `foveate`."""
    try:
        app()
    except KeyboardInterrupt:
        typer.echo(_INTERRUPTED, err=True)
        sys.exit(2)


# What the commands share


def _device(name: str) -> str:
    """A device's name, if this machine has it."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise FoveateError(f"this machine has no device {name!r}; use cpu, or cuda where there is a GPU") from None
    return name


def _quiet() -> None:
    """Keep transformers' own progress bars and advice out of our output."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """A spinner on stderr, where somebody is looking."""
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where somebody is looking; gives what is to be told how much is done, of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("")
        yield lambda done, whole: progress.update(bar, completed=done, total=whole)


def _console() -> Console:
    from rich.console import Console

    # Piped output has no width of its own; 80 columns would break the rows.
    return Console() if sys.stdout.isatty() else Console(width=120)


def _table(*columns: str, title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    return table


def _numbers(table: Table, *columns: str) -> None:
    for column in columns:
        table.add_column(column, justify="right")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _runs(answers: Sequence[Answer]) -> str:
    fewest, most = min(each.runs for each in answers), max(each.runs for each in answers)
    if most == 1:
        return "one run"
    return f"the middle one of {most} runs" if fewest == most else f"the middle one of {fewest} to {most} runs"


def _answer_table(question: str, answers: Sequence[Answer]) -> Table:
    from rich.markup import escape

    table = _table("spec", "answer", title=escape(question))
    _numbers(table, "tokens", "of dense", "mean over layers", "encoder", "compressor", "prefill", "decode", "total")
    for each in answers:
        table.add_row(
            escape(each.spec),
            f"[bold]{escape(each.text)}[/]",
            f"{each.tokens_after}",
            f"{each.tokens_after / each.tokens_before:.1%}",
            f"{each.mean_over_layers:.1f}",
            f"{each.encoder:.1f}",
            f"{each.compressor:.1f}",
            f"{each.prefill:.1f}",
            f"{each.decode:.1f}",
            f"{each.total:.1f}",
        )
    return table


def _drawn(
    model: Any,
    processor: Any,
    inputs: dict[str, Any],
    image: Image.Image,
    question: str,
    specs: Sequence[Any],
    answers: Sequence[Answer],
) -> Image.Image:
    """The panels of all answers, dense first."""
    import torch

    from foveate.asking import image_layout, seen_part
    from foveate.engine import compress
    from foveate.view import Panel, draw

    layout = image_layout(model, inputs)
    vision = model.config.vision_config
    patch = int(vision.patch_size) * int(getattr(vision, "spatial_merge_size", 1))
    panels = [Panel(layout, "dense", f'{layout.total} tokens: "{answers[0].text}"', patch=patch)]
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    for spec, answer in zip(specs, answers[1:], strict=True):
        with torch.inference_mode():
            (kept,) = compress(model, inputs, spec).images
        note = f'{kept.after} of {kept.before} tokens: "{answer.text}"'
        panels.append(Panel(layout, str(spec), note, kept.plan, kept.seen, patch))
    return draw(seen_part(processor, image), panels, question)


if __name__ == "__main__":
    main()
