"""Runs benchmarks and writes docs/benchmarks/<name>.md, .json and .png: ``python -m bench [NAME ...]``, default all."""

import argparse
import datetime
import json
import platform
from pathlib import Path

import torch
from comfyui_distillery.measure.plots import NoMatplotlib

from tools import ROOT

from . import (
    Unavailable,
    caching,
    caching_quality,
    distill,
    distill_quality,
    distill_toy,
    gpu,
    guidance,
    guidance_quality,
    overhead,
    solvers,
    startup,
)
from .draw import save

BENCHMARKS = {
    "startup": startup.measure,
    "overhead": overhead.measure,
    "solvers": solvers.measure,
    "guidance": guidance.measure,
    "guidance_quality": guidance_quality.measure,
    "caching": caching.measure,
    "caching_quality": caching_quality.measure,
    "distill": distill.measure,
    "distill_quality": distill_quality.measure,
    "distill_toy": distill_toy.measure,
    "gpu": gpu.measure,
}
FOLDER = ROOT / "docs" / "benchmarks"


def machine():
    gpu_name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"torch {torch.__version__}, ComfyUI {comfyui_version()}, Python {platform.python_version()}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {gpu_name}, {versions}"


def comfyui_version():
    from tools.inprocess import import_comfyui

    import_comfyui()
    import comfyui_version

    return comfyui_version.__version__


def cell(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(name, result, where, when, picture):
    rows = result.table or result.rows
    names = list(rows[0])
    measured = f"Measured {when} on {where} by `make bench NAME={name}`."
    lines = [f"# {name}", "", result.question, "", result.method, "", measured, ""]
    lines += [f"![{name}]({picture})", ""] if picture else []
    lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row[key]) for key in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(name, result, folder):
    """Writes the files of one benchmark and returns its Markdown. Without matplotlib there is no picture."""
    when, where, picture = datetime.date.today().isoformat(), machine(), f"{name}.png"
    try:
        save(result.plot.draw(result.drawn or result.rows), folder / picture)
    except NoMatplotlib as missing:
        print(missing)
        picture = None
    text = markdown(name, result, where, when, picture)
    (folder / f"{name}.md").write_text(text)
    record = {"name": name, "date": when, "machine": where, "question": result.question, "method": result.method}
    (folder / f"{name}.json").write_text(json.dumps({**record, "rows": result.rows}, indent=2) + "\n")
    return text


def keep(name, reason, folder):
    """What to say where a benchmark cannot run: the figures of an earlier day stay, else a page says there are none."""
    file = folder / f"{name}.json"
    if file.exists():
        record = json.loads(file.read_text())
        return f"{name}: {reason} Kept: the figures of {record['date']} on {record['machine']}.\n"
    text = f"# {name}\n\nNever measured: {reason}\n"
    (folder / f"{name}.md").write_text(text)
    return text


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--output", type=Path, default=FOLDER, help="where to write (default: docs/benchmarks)")
    options = parser.parse_args(arguments)
    names = options.names or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            print(write(name, BENCHMARKS[name](), options.output))
        except Unavailable as reason:
            print(keep(name, str(reason), options.output))


if __name__ == "__main__":
    main()
