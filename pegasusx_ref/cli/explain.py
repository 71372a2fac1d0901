"""``pegasusx-ref explain``: a place of the model by its specification, shapes, cost and golden code."""

from pathlib import Path

import click

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.cli.commands import MODEL_FOLDER, Command
from pegasusx_ref.cli.messages import UsageError
from pegasusx_ref.cli.options import MODEL_HELP, POSITIVE, hub_options, json_option, revision_option
from pegasusx_ref.cli.printing import print_code, print_json, print_prose, print_table, print_text, print_title
from pegasusx_ref.model.config import PRESETS, PegasusXConfig
from pegasusx_ref.rendering.tables import Table, count, counted, size
from pegasusx_ref.study import cost_report
from pegasusx_ref.study.costs import cost
from pegasusx_ref.study.shape_inference import Step, flops_formula, steps, steps_at
from pegasusx_ref.study.spec_sections import Section, golden_source, places, sections, sections_at
from pegasusx_ref.study.step_table import as_dict, as_table, table_rows
from pegasusx_ref.tracing.trace_points import TRACE_POINTS


@click.command(cls=Command)
@click.argument("place", required=False)
@click.option("--cost", "whole_cost", is_flag=True, help="Show the cost of each part of the model.")
@click.option("--config", "preset", type=click.Choice(list(PRESETS)), help="Published shape.  [default: base]")
@click.option("--model", "folder", type=MODEL_FOLDER, help=f"{MODEL_HELP}, for its config.json.")
@revision_option
@click.option("--tokens", default=4096, show_default=True, type=POSITIVE, help="Number of source tokens.")
@click.option("--target-tokens", default=128, show_default=True, type=POSITIVE, help="Number of target tokens.")
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float64", "float32", "bfloat16", "float16"]),
    help="Dtype of weights and tensors, for their sizes in bytes.",
)
@json_option
def explain(
    place: str | None,
    whole_cost: bool,
    preset: str | None,
    folder: Path | None,
    revision: str | None,
    tokens: int,
    target_tokens: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Explain a PLACE by its specification, shapes, cost and code.

    PLACE is the name of a tensor, the scope of several (encoder.layers.1.self_attn), or the number of a section (7.1).
    Without PLACE, all places are listed with their main section. No weights are read, so shapes and costs of the large
    model at 16384 tokens are instant. FLOPs are those of matrix products: a multiplication and an addition are two.
    With --json, every block is listed.
    """
    if preset is not None and folder is not None:
        raise UsageError(f"--config {preset} and --model {folder} exclude each other")
    if place is not None and whole_cost:
        raise UsageError(f"--cost and {place} exclude each other: --cost is for the whole model")
    hub = hub_options(folder, revision)
    if folder is None:
        config = PegasusXConfig.preset(preset or "base")
    else:
        config = PegasusXConfig.from_pretrained(folder, **hub)
    subject = preset or "base" if folder is None else folder.resolve().name
    heading = f"{subject}, {tokens} source and {target_tokens} target tokens, {dtype}"
    if whole_cost:
        show_cost(config, heading, tokens, target_tokens, dtype, as_json)
    elif place is None:
        list_places(as_json)
    elif place in sections():
        show_sections(place, [sections()[place]], [], config, heading, dtype, as_json)
    else:
        found = sections_at(place)
        place = place.replace("{i}", "0").replace("{n}", "0")
        here = steps_at(place, steps(config, tokens, target_tokens))
        show_sections(place, found, here, config, heading, dtype, as_json)


def list_places(as_json: bool) -> None:
    """Print every place with its dimensions and its main section."""
    if as_json:
        print_json({place: [section.number for section in sections_at(place)] for place in places()})
        return
    rows = [(place, TRACE_POINTS.get(place, ""), titled(sections_at(place)[0])) for place in places()]
    print_table(Table(("place", "shape", "section"), rows, left=3))


def show_sections(
    place: str,
    found: list[Section],
    here: list[Step],
    config: PegasusXConfig,
    heading: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Print the main section, the shapes, the cost and the code of a place; list the other sections.

    Args:
        place: to explain.
        found: its sections, the most specific first.
        here: its steps; none for the number of a section.
        config: of the model.
        heading: describes the model and the lengths.
        dtype: of the tensors.
        as_json: print JSON.
    """
    closest, *others = found
    own = cost(place, config, here)
    sources = [golden_source(name) for section in found for name in section.functions][:1]
    if as_json:
        entries = {
            "place": place,
            "sections": [section._asdict() for section in found],
            "parameters": own.parameters,
            "flops": own.flops,
            "steps": [as_dict(row, dtype) for row in table_rows(here, fold="nothing")],
            "source": [source._asdict() for source in sources],
        }
        print_json(entries)
        return
    print_title(titled(closest))
    print_prose(closest.prose)
    if here:
        itemsize = numpy_dtype(dtype).itemsize
        rows = table_rows(here, fold="blocks" if ".layers." in place else "layers")
        print_title(f"\n{place} in {heading}")
        print_table(as_table(rows, dtype))
        facts = [f"{counted(len(here), 'tensor')} of {size(itemsize * sum(step.size for step in here))}"]
        if own.flops:
            formula = f" = {flops_formula(here)}" if len(rows) == 1 else ""
            facts.insert(0, f"{count(own.flops)} FLOPs{formula}")
        if own.parameters:
            facts.insert(0, f"{counted(own.parameters, 'parameter')} of {size(itemsize * own.parameters)}")
        print_text(f"\n{', '.join(facts)}")
    for source in sources:
        print_title(f"\n{source.path}:{source.first_line}")
        print_code(source.lines, source.first_line)
    if others:
        print_text("\nSee also: " + ", ".join(titled(section) for section in others))


def show_cost(config: PegasusXConfig, heading: str, T: int, L: int, dtype: str, as_json: bool) -> None:
    """Print the cost of each part of the model, of attention, and of decoding.

    Args:
        config: of the model.
        heading: describes the model and the lengths.
        T: source tokens.
        L: target tokens.
        dtype: of weights and tensors.
        as_json: print JSON.
    """
    if as_json:
        print_json(cost_report.as_dict(config, T, L, dtype))
        return
    print_title(heading)
    print_table(cost_report.part_table(config, T, L, dtype))
    print_text()
    print_table(cost_report.attention_table(config, T, dtype))
    print_text()
    for line in cost_report.decoding_lines(config, T, L, dtype):
        print_text(line)


def titled(section: Section) -> str:
    """Format a section's number and title."""
    return f"{section.number} {section.title}"
