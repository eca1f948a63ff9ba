"""Makes a first picture: runs workflows/api/01-first-picture.json and says what it took. Behind ``make demo``."""

import time

from . import ROOT
from .install import run_program
from .prompt import load_prompt
from .run_workflow import run_on
from .server import end_on_sigterm, running_server

WORKFLOW = ROOT / "workflows" / "api" / "01-first-picture.json"


def main():
    start = time.monotonic()
    prompt = load_prompt(WORKFLOW)
    with running_server() as server:
        result = run_on(server, prompt, ROOT / "output")
    totals = result["reports"]
    print(f"picture        {result['files'][0]}")
    print(f"steps          {sum(report['steps'] for report in totals)}")
    print(f"evaluations    {result['evaluations']}")
    print(f"sampling       {sum(report['seconds'] for report in totals):.2f} s")
    print(f"altogether     {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    end_on_sigterm()
    run_program(main)
