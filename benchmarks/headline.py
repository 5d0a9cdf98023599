"""The four rows that say what a compression came to, and the figure of what each layer kept.

    python benchmarks/headline.py runs/tiny/1.5x-decode [--svg docs/images/kept.svg]

It reads a finished run; foreseen is what the search's costs said, measured what `bench` timed.
"""

import argparse
from pathlib import Path

from fretsaw.report.findings import Findings, read_findings
from fretsaw.report.plots.style import VARIABLES
from fretsaw.report.plots.table import draw_all
from fretsaw.stage.artifact import read_manifest


def rows(found: Findings) -> list[tuple[str, str, str, str, str]]:
    """Return what stands in the table: name, parent, child, foreseen, measured."""
    table = []
    for phase in ("decode", "prefill"):
        timed, foreseen = found.speed[phase], found.predicted.get(phase)
        table.append(
            (
                f"{phase}, ms",
                f"{timed['parent_ms']:,.0f}",
                f"{timed['child_ms']:,.0f}",
                f"{foreseen:.2f}x" if foreseen else "",
                f"{timed['speedup']:.2f}x, noise {timed['noise_floor']:.1%}",
            )
        )
    parent, child = found.num_params["parent"], found.num_params["child"]
    foreseen = found.child_costs["params"] / found.parent_costs["params"]
    counted = f"{child / parent:.0%}"
    table.append(("parameters", f"{parent:,}", f"{child:,}", f"{foreseen:.0%}", counted))
    losses = [found.results[f"{name}_loss"] for name in ("parent", "child")]
    kl = f"KL {found.results['kl']:.4f}"
    table.append(("held-out loss, nats", *(f"{loss:.4f}" for loss in losses), "", kl))
    return table


def alone(svg: str) -> str:
    """Return a figure of the page as a file of its own: light, with the page's colours in it."""
    colours = "".join(f"{variable}:{colour};" for colour, variable in VARIABLES.items())
    start, _, rest = svg.partition(">")
    style = f"<style>svg{{{colours}--sans:sans-serif}}</style>"
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'{start} xmlns="http://www.w3.org/2000/svg">{style}{paper}{rest}'


def main() -> None:
    """Print the table, and write the figure where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a target, with a report in it")
    parser.add_argument("--svg", type=Path, help="where to write the figure")
    options = parser.parse_args()
    inputs = read_manifest(options.run / "report")["inputs"]
    found = read_findings({name: Path(entry["path"]) for name, entry in inputs.items()})
    print(f"{found.target} at {found.speed['scenario']}\n")
    for row in (("", "parent", "child", "foreseen", "measured"), ("---",) * 5, *rows(found)):
        print(f"| {' | '.join(row)} |")
    if options.svg:
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(alone(draw_all(found)["shapes"]))


if __name__ == "__main__":
    main()
