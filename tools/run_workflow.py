"""Runs an API-format workflow in ComfyUI and fetches what it made.

    python -m tools.run_workflow FILE [--set TITLE_OR_ID.INPUT=VALUE ...] [--server URL] [--output DIR] [--json]
"""

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path

import aiohttp
from tqdm import tqdm

from . import ROOT
from .install import Problem
from .prompt import (
    explain_failure,
    explain_missing_nodes,
    explain_rejection,
    label,
    load_prompt,
    override,
    title,
)
from .server import end_on_sigterm, running_server

BAR = "{percentage:3.0f}% |{bar}| {elapsed} {desc}"


def run(prompt, server, output, verbose=False):
    """Run a prompt on the ComfyUI at this URL; files go to `output`. Returns the object that ``--json`` prints."""
    url = server if "://" in server else f"http://{server}"
    if not re.match("https?://[^/]", url):
        raise Problem(f"--server {server} is no address such as http://127.0.0.1:8188.")
    return asyncio.run(_run(prompt, url.rstrip("/") + "/", Path(output), verbose))


async def _run(prompt, url, output, verbose):
    client, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
    start = time.monotonic()
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)) as session:
        try:
            async with session.ws_connect("ws", params={"clientId": client}, max_msg_size=0, heartbeat=120) as socket:
                try:
                    await _post(session, prompt, client, prompt_id)
                    await _follow(session, socket, prompt, prompt_id, verbose)
                except asyncio.CancelledError:
                    await _cancel(session, prompt_id)
                    raise
            outputs = (await _get(session, f"history/{prompt_id}"))[prompt_id]["outputs"]
            files = [await _fetch(session, item, output) for item in _files(outputs)]
        except aiohttp.ClientConnectorError as error:
            raise Problem(f"No ComfyUI answers at {url}: start it, or leave --server out.") from error
        except aiohttp.WSServerHandshakeError as error:
            raise Problem(f"What answers at {url} is no ComfyUI (status {error.status} for /ws).") from error
        except aiohttp.ClientError as error:
            raise Problem(f"The connection to ComfyUI at {url} broke: {error or type(error).__name__}.") from error
    runs = [run for shown in outputs.values() for run in shown.get("report", [])
            if run.get("totals")]  # else another pack's, or a run that never ended
    reports = [run["totals"] for i, run in enumerate(runs) if run not in runs[:i]]  # two nodes may show one report
    texts = [text for shown in outputs.values() for text in shown.get("text", [])]
    return {
        "files": files,
        "texts": list(dict.fromkeys(texts)),
        "seconds": round(time.monotonic() - start, 3),
        "evaluations": sum(totals["evaluations"] for totals in reports) if reports else None,
        "reports": reports,
        "prompt_id": prompt_id,
    }


async def _get(session, path):
    async with session.get(path) as response:
        response.raise_for_status()
        return await response.json()


async def _post(session, prompt, client, prompt_id):
    body = {"prompt": prompt, "client_id": client, "prompt_id": prompt_id}
    async with session.post("prompt", json=body) as response:
        if response.status not in (200, 400):
            raise Problem(f"ComfyUI answered /prompt with status {response.status}; its log says why.")
        reply = await response.json()
    if "error" in reply:
        if reply["error"]["type"] == "missing_node_type":
            classes = {node["class_type"] for node in prompt.values()}
            missing = [name for name in classes if not await _get(session, f"object_info/{name}")]
            raise Problem(explain_missing_nodes(prompt, missing))
        await _add_choices(session, prompt, reply["node_errors"])
        raise Problem(explain_rejection(prompt, reply))
    if reply["node_errors"]:  # the outputs it can make are already queued; half a result would pass for a whole one
        await _cancel(session, prompt_id)
        await _add_choices(session, prompt, reply["node_errors"])
        raise Problem(explain_rejection(prompt, {"error": {"type": "some_outputs"}, **reply}))


async def _add_choices(session, prompt, node_errors):
    """ComfyUI leaves a list of over 20 choices out of its complaint; the person who has to choose needs it."""
    for node_id, node in node_errors.items():
        for error in node["errors"]:
            extra = error.get("extra_info", {})
            if error["type"] == "value_not_in_list" and not extra["input_config"]:
                kind = prompt[node_id]["class_type"]
                inputs = (await _get(session, f"object_info/{kind}"))[kind]["input"]
                extra["input_config"] = {**inputs["required"], **inputs.get("optional", {})}.get(extra["input_name"])


async def _cancel(session, prompt_id):
    await session.post("queue", json={"delete": [prompt_id]})
    await session.post("interrupt", json={"prompt_id": prompt_id})


async def _follow(session, socket, prompt, prompt_id, verbose):
    """Read ComfyUI's messages until this prompt is done and in the history; raise if it fails."""
    problem, started = None, 0
    with tqdm(total=len(prompt), disable=None, leave=False, bar_format=BAR) as bar:
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            kind, data = event["type"], event["data"]
            if kind == "status" and not data["status"]["exec_info"]["queue_remaining"]:
                await _still_known(session, prompt_id)
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "executing" and data["node"] is None:
                if problem:
                    raise problem
                return
            if kind == "execution_cached":
                started += len(data["nodes"])
            elif kind == "executing":
                _show(bar, started, title(prompt, data["node"]))
                started += 1
            elif kind == "progress":
                done, most = data["value"], data["max"]
                _show(bar, started - 1 + done / most, f"{title(prompt, data['node'])} {done}/{most}")
            elif kind == "execution_error":
                problem = Problem(explain_failure(prompt, data, verbose))
            elif kind == "execution_interrupted":
                problem = Problem(f"Somebody interrupted the workflow at {label(prompt, data['node_id'])}.")
    raise Problem("ComfyUI closed the connection before the workflow was done: it has probably ended; see its log.")


def _show(bar, nodes, text):
    bar.n = min(nodes, bar.total)  # nodes made by other nodes are not in the total
    bar.set_description_str(text)


async def _still_known(session, prompt_id):
    queue = await _get(session, "queue")
    queued = {item[1] for items in queue.values() for item in items}
    if prompt_id not in queued and not await _get(session, f"history/{prompt_id}"):
        raise Problem("Somebody removed the workflow from ComfyUI's queue.")


def _files(outputs):
    """What the outputs name that can be fetched: saved files first, then previews."""
    items = [item for shown in outputs.values() for listed in shown.values() if isinstance(listed, list)
             for item in listed if isinstance(item, dict) and item.get("type") in ("output", "temp")]
    return sorted(items, key=lambda item: item["type"])


async def _fetch(session, item, folder):
    """Bring one file into the folder under a name nothing there has; it appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{uuid.uuid4().hex}.part"
    wanted = {key: item[key] for key in ("filename", "subfolder", "type")}
    try:
        async with session.get("view", params=wanted) as response:
            response.raise_for_status()
            with part.open("wb") as file:
                async for chunk in response.content.iter_chunked(1 << 20):
                    file.write(chunk)
        return str(part.replace(_reserve(folder, Path(item["filename"]))).resolve())
    finally:
        part.unlink(missing_ok=True)


def _reserve(folder, name):
    path, number = folder / name.name, 2
    while True:
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            path, number = folder / f"{name.stem}-{number}{name.suffix}", number + 1


# The command line


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.run_workflow", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a workflow in API format")
    parser.add_argument("--set", action="append", default=[], metavar="TITLE_OR_ID.INPUT=VALUE", help="may be repeated")
    parser.add_argument("--server", metavar="URL", help="a running ComfyUI; without it one is started and ended")
    parser.add_argument("--output", default=ROOT / "output", metavar="DIR", help="where results go (default: output/)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--verbose", action="store_true", help="show where in a node an error arose")
    options = parser.parse_args()
    end_on_sigterm()
    try:
        prompt = load_prompt(options.file)
        for text in options.set:
            override(prompt, text)
        result = run_somewhere(prompt, options)
    except Problem as problem:
        if options.json:
            print(json.dumps({"error": str(problem)}))
        sys.exit(f"distillery: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(json.dumps(result))
    else:
        print("\n".join([*result["texts"], *result["files"]]))


def run_somewhere(prompt, options):
    if options.server:
        return run(prompt, options.server, options.output, options.verbose)
    with running_server(only_this_pack=False) as server:
        return run_on(server, prompt, options.output, options.verbose)


def run_on(server, prompt, output, verbose=False):
    """run() on a server of our own, whose log can say more when it dies."""
    try:
        return run(prompt, server.url, output, verbose)
    except Problem as problem:
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise Problem(f"ComfyUI ended (status {server.process.wait(0.5)}):\n{server.log_tail()}") from problem
        raise


if __name__ == "__main__":
    main()
