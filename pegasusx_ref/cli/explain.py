"""``pegasusx-ref explain``: a place of the model by its specification, shapes, cost and golden code."""

import json
from pathlib import Path

import click

from pegasusx_ref.backend.arrays import numpy_dtype
from pegasusx_ref.cli.messages import UsageError, plainly
from pegasusx_ref.cli.printing import print_code, print_prose, print_table
from pegasusx_ref.model.config import PRESETS, PegasusXConfig
from pegasusx_ref.rendering.tables import Table, count, counted, size
from pegasusx_ref.study import cost_report
from pegasusx_ref.study.costs import cost
from pegasusx_ref.study.sections import Section, golden_source, places, sections, sections_at
from pegasusx_ref.study.step_table import as_dict, as_table, rows_of
from pegasusx_ref.study.steps import Step, flops_formula, steps, steps_at
from pegasusx_ref.tracing.trace_points import TRACE_POINTS


@click.command()
@click.argument("place", required=False)
@click.option("--cost", "whole_cost", is_flag=True, help="Show what each part of the model costs.")
@click.option("--config", "preset", type=click.Choice(list(PRESETS)), help="Whose shapes.  [default: base]")
@click.option("--model", "folder", type=click.Path(path_type=Path), help="Checkpoint folder, for its config.json.")
@click.option("--tokens", default=4096, show_default=True, type=click.IntRange(min=1), help="Source tokens.")
@click.option("--target-tokens", default=128, show_default=True, type=click.IntRange(min=1), help="Target tokens.")
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float64", "float32", "bfloat16", "float16"]),
    help="Of weights and tensors, for their bytes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, with every slice.")
def explain(
    place: str | None,
    whole_cost: bool,
    preset: str | None,
    folder: Path | None,
    tokens: int,
    target_tokens: int,
    dtype: str,
    as_json: bool,
) -> None:
    """Explain a PLACE of the model: what it computes, of what shape, at what cost, by which code.

    PLACE is the name of a tensor or of what holds it (encoder.layers.1.self_attn), or the number of a section (7.1).
    Without PLACE all of them are listed, with the section that says most. No weights are read, so it costs nothing to
    ask about the large model at 16384 tokens. FLOPs are those of matrix products, a multiplication and an addition
    counted as two.
    """
    if preset is not None and folder is not None:
        raise UsageError(f"--config {preset} and --model {folder} both say whose shapes: give one of them")
    if place is not None and whole_cost:
        raise UsageError(f"--cost shows the whole model: leave {place} out, whose own cost is shown without --cost")
    with plainly():
        config = PegasusXConfig.preset(preset or "base") if folder is None else PegasusXConfig.from_pretrained(folder)
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
    """Print every place with its dimensions and the section that says most."""
    rows = [(place, TRACE_POINTS.get(place, ""), sections_at(place)[0]) for place in places()]
    if as_json:
        click.echo(json.dumps({place: [section.number for section in sections_at(place)] for place in places()}))
        return
    header = ("place", "shape", "section")
    print_table(Table(header, [(place, letters, titled(section)) for place, letters, section in rows], left=3))


def show_sections(
    place: str,
    found: list[Section],
    here: list[Step],
    config: PegasusXConfig,
    heading: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Print the closest section, the shapes and the cost of a place, and the code; name the other sections.

    Args:
        place: what is explained.
        found: its sections, the closest first.
        here: its steps; of a section that was asked for by its number, none.
        config: whose shapes.
        heading: says whose shapes.
        dtype: of the tensors.
        as_json: print an object.
    """
    closest, *others = found
    rows = rows_of(here, fold="blocks" if ".layers." in place else "layers")
    own, tensors = cost(place, config, here), sum(step.size for step in here)
    sources = [golden_source(name) for section in found for name in section.functions][:1]
    if as_json:
        entries = {
            "place": place,
            "sections": [section._asdict() for section in found],
            "parameters": own.parameters,
            "flops": own.flops,
            "steps": [as_dict(row, dtype) for row in rows_of(here, fold="nothing")],
            "source": [source._asdict() for source in sources],
        }
        click.echo(json.dumps(entries, ensure_ascii=False))
        return
    click.echo(click.style(titled(closest), bold=True) + "\n")
    print_prose(closest.prose)
    if here:
        itemsize = numpy_dtype(dtype).itemsize
        click.echo(click.style(f"\n{place} in {heading}", bold=True) + "\n")
        print_table(as_table(rows, dtype))
        facts = [f"{counted(len(here), 'tensor')} of {size(itemsize * tensors)}"]
        if own.flops:
            formula = f" = {flops_formula(here)}" if len(rows) == 1 else ""
            facts.insert(0, f"{count(own.flops)} FLOPs{formula}")
        if own.parameters:
            facts.insert(0, f"{counted(own.parameters, 'parameter')} of {size(itemsize * own.parameters)}")
        click.echo(f"\n{', '.join(facts)}")
    for source in sources:
        click.echo("\n" + click.style(f"{source.path}:{source.first_line}", bold=True) + "\n")
        print_code(source.lines, source.first_line)
    if others:
        click.echo("\nSee also: " + ", ".join(titled(section) for section in others))


def show_cost(config: PegasusXConfig, heading: str, T: int, L: int, dtype: str, as_json: bool) -> None:
    """Print what each part of the model costs.

    Args:
        config: of the model.
        heading: says whose cost.
        T: source tokens.
        L: target tokens.
        dtype: of weights and tensors.
        as_json: print an object.
    """
    if as_json:
        click.echo(json.dumps(cost_report.as_dict(config, T, L, dtype)))
        return
    click.echo(click.style(heading, bold=True) + "\n")
    print_table(cost_report.part_table(config, T, L, dtype))
    click.echo()
    print_table(cost_report.attention_table(config, T, dtype))
    click.echo()
    for line in cost_report.decoding_lines(config, T, L, dtype):
        click.echo(line)


def titled(section: Section) -> str:
    """Write a section's number and title."""
    return f"{section.number} {section.title}"
