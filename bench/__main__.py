"""Runs benchmarks and writes docs/benchmarks/<name>.md and .json: ``python -m bench [NAME ...]``, default all."""

import argparse
import datetime
import json
import platform
from dataclasses import asdict

import torch

from tools import ROOT

from . import overhead, startup

BENCHMARKS = {"startup": startup.measure, "overhead": overhead.measure}
FOLDER = ROOT / "docs" / "benchmarks"


def machine():
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {gpu}, {versions}"


def cell(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(name, result, where, when):
    names = list(result.rows[0])
    measured = f"Measured {when} on {where} by `make bench NAME={name}`."
    lines = [f"# {name}", "", result.question, "", result.method, "", measured, ""]
    lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row[key]) for key in names) + " |" for row in result.rows]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        result, when, where = BENCHMARKS[name](), datetime.date.today().isoformat(), machine()
        text = markdown(name, result, where, when)
        (FOLDER / f"{name}.md").write_text(text)
        record = {"name": name, "date": when, "machine": where, **asdict(result)}
        (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
        print(text)


if __name__ == "__main__":
    main()
