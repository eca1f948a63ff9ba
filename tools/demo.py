"""A model and its distilled student side by side: runs workflows/api/05-four-steps.json and says what each took. Behind ``make demo``."""

import time

from . import ROOT
from .install import run_program
from .prompt import load_prompt
from .run_workflow import run_on
from .server import end_on_sigterm, running_server

WORKFLOW = ROOT / "workflows" / "api" / "05-four-steps.json"
COMPARISON = "teacher-student"  # as the workflow names the file


def main():
    start = time.monotonic()
    prompt = load_prompt(WORKFLOW)
    with running_server() as server:
        result = run_on(server, prompt, ROOT / "output")
    teacher, student = sorted(result["reports"], key=lambda report: -report["steps"])
    print(f"picture        {next(file for file in result['files'] if COMPARISON in file)}")
    print(f"steps          {teacher['steps']} and {student['steps']}")
    print(f"evaluations    {teacher['evaluations']} and {student['evaluations']}")
    print(f"sampling       {teacher['seconds']:.2f} s and {student['seconds']:.2f} s")
    print(f"altogether     {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    end_on_sigterm()
    run_program(main)
