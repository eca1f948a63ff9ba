"""Sweep in the real executor, on the bundled model: what it clones, what it measures, and what it refuses."""

import asyncio
import json
import uuid

import execution
import pytest
import server
import torch
from comfy_api.latest import io

MODEL, POSITIVE, NEGATIVE, SIZE, SAMPLER, REFERENCE = "model", "positive", "negative", "size", "sampler", "reference"


SEEN = []


def passing(node_id, *, output_node=False, listed=False):
    """A node that hands on a value of any type, or a list of it twice, and notes it in ``SEEN``."""

    class Passes(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(
                node_id=node_id, is_output_node=output_node, outputs=[io.AnyType.Output(is_output_list=listed)],
                inputs=[io.AnyType.Input("value"), io.String.Input("name", default="", optional=True)],
            )  # fmt: skip

        @classmethod
        def execute(cls, value, name="") -> io.NodeOutput:
            SEEN.append((name, value))
            return io.NodeOutput([value, value] if listed else value)

    return Passes


@pytest.fixture(scope="module")
def executor(nodes):
    ours = {
        "TestPasses": passing("TestPasses", output_node=True),
        "TestPassesQuietly": passing("TestPassesQuietly"),
        "TestListed": passing("TestListed", listed=True),
    }
    nodes.update(ours)
    memory = {"ram": 0.0, "ram_inactive": 0.0, "lru": 0}
    yield execution.PromptExecutor(
        server.PromptServer(asyncio.new_event_loop()), cache_type=execution.CacheType.RAM_PRESSURE, cache_args=memory
    )
    for name in ours:
        del nodes[name]


def queue_on(executor):
    """Runs a prompt as the server would; returns {name: values that passed TestPasses}, or raises what ComfyUI would show."""

    def run(prompt):
        SEEN.clear()
        prompt_id = str(uuid.uuid4())
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, prompt, None))
        assert valid, (error, node_errors)
        executor.execute(prompt, prompt_id, {}, outputs)
        errors = [data for event, data in executor.status_messages if event == "execution_error"]
        if errors:
            raise ValueError(errors[0]["exception_message"])
        seen = {}
        for name, value in SEEN:
            seen.setdefault(name, []).append(value)
        return seen

    return run


@pytest.fixture
def queue(executor):
    executor.reset()  # forgets what other tests ran
    return queue_on(executor)


@pytest.fixture
def warm_queue(executor):
    return queue_on(executor)


def node(class_type, title=None, **inputs):
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


def sampler(title, **inputs):
    usual = {
        "seed": 3, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "model": [MODEL, 0],
        "positive": [POSITIVE, 0], "negative": [NEGATIVE, 0], "latent_image": [SIZE, 0],
    }  # fmt: skip
    return node("KSampler", title, **usual | inputs)


def graph(sweep=None, **nodes):
    """The bundled model, two samplers, and a sweep over the first; ``nodes`` are added or replace some."""
    inputs = {"candidate": [SAMPLER, 0], "reference": [REFERENCE, 0], "vary": "Fast.steps", "values": "2, 3, 5"}
    return {
        MODEL: node("Distillery_LoadDemoModel", name="shapes-dit"),
        POSITIVE: node("CLIPTextEncode", text="a large red star on a blue background", clip=[MODEL, 1]),
        NEGATIVE: node("CLIPTextEncode", text="", clip=[MODEL, 1]),
        SIZE: node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        SAMPLER: sampler("Fast"),
        REFERENCE: sampler("Slow", steps=8),
        "sweep": node("Distillery_Sweep", **inputs | (sweep or {})),
        "keep": node("TestPasses", value=["sweep", 0], name="sweep"),
        **nodes,
    }


def swept(queue, sweep=None, **nodes):
    return queue(graph(sweep, **nodes))["sweep"][0]


def test_each_setting_gives_what_it_gives_alone_bit_for_bit(queue):
    sweep = swept(queue)
    assert [point.settings for point in sweep.points] == [{"Fast.steps": 2}, {"Fast.steps": 3}, {"Fast.steps": 5}]
    for point, steps in zip(sweep.points, (2, 3, 5)):
        alone = graph(**{SAMPLER: sampler("Fast", steps=steps), "keep": node("TestPasses", value=[SAMPLER, 0], name="alone")})
        del alone["sweep"]
        assert torch.equal(point.result, queue(alone)["alone"][0]["samples"])


def test_evaluations_are_steps_times_branches_and_seconds_are_measured(queue):
    sweep = swept(queue, {"repeats": 3})
    assert [point.evaluations for point in sweep.points] == [2 * 2, 2 * 3, 2 * 5]
    assert [len(point.seconds) for point in sweep.points] == [3, 3, 3]
    assert all(second > 0 for point in sweep.points for second in point.seconds)


def test_without_guidance_a_step_is_one_evaluation_and_heun_takes_two(queue):
    sweep = swept(queue, {"vary_2": "Fast.sampler_name", "values_2": "euler, heun"}, **{SAMPLER: sampler("Fast", cfg=1.0)})
    settings = [(point.settings["Fast.steps"], point.settings["Fast.sampler_name"]) for point in sweep.points]
    assert settings == [(steps, name) for steps in (2, 3, 5) for name in ("euler", "heun")]
    assert [point.evaluations for point in sweep.points] == [2, 3, 3, 5, 5, 9]


def test_only_what_depends_on_the_varied_input_runs_again(queue):
    seen = queue(graph(
        before=node("TestPasses", value=[SIZE, 0], name="before"),
        after=node("TestPasses", value=[SAMPLER, 0], name="after"),
        sweep={"candidate": ["after", 0]},
        **{SAMPLER: sampler("Fast", latent_image=["before", 0], seed=11)},
    ))
    assert len(seen["before"]) == 1
    assert len(seen["after"]) == 1 + 1 + 3, "the workflow's own, the warm-up, and one a setting"


def test_the_branch_itself_does_not_run_unless_something_else_needs_it(queue):
    marked = node("TestPassesQuietly", value=[SAMPLER, 0], name="marked")
    seen = queue(graph({"candidate": ["marked", 0]}, marked=marked, **{SAMPLER: sampler("Fast", seed=12)}))
    assert len(seen["marked"]) == 1 + 3, "the warm-up, and one a setting"


def advanced(**sweep):
    """The custom sampling nodes: the guider is before the varied schedule and must not be cloned, and yet be watched."""
    return graph(
        sweep={"candidate": [SAMPLER, 0], "vary": "Levels.steps", **sweep},
        noise=node("Distillery_NoisePerItem", seed=3),
        guider=node("CFGGuider", model=[MODEL, 0], positive=[POSITIVE, 0], negative=[NEGATIVE, 0], cfg=4.0),
        watched=node("TestPasses", value=["guider", 0], name="guider"),
        method=node("Distillery_SamplerMomentum", "Method", **{"method": "ghvb", "method.order": 1.0, "method.variable_step": False}),
        levels=node("BasicScheduler", "Levels", model=[MODEL, 0], scheduler="simple", steps=4, denoise=1.0),
        **{SAMPLER: node("SamplerCustomAdvanced", noise=["noise", 0], guider=["watched", 0], sampler=["method", 0],
                         sigmas=["levels", 0], latent_image=[SIZE, 0])},
    )  # fmt: skip


def test_a_guider_that_is_shared_is_watched(queue):
    seen = queue(advanced())
    assert len(seen["guider"]) == 1
    assert [point.evaluations for point in seen["sweep"][0].points] == [4, 6, 10]
    alone = swept(queue)  # ghvb of order 1 is Euler, to rounding
    for point, expected in zip(seen["sweep"][0].points, alone.points):
        torch.testing.assert_close(point.result, expected.result, rtol=1e-3, atol=1e-3)


def test_a_knob_of_a_chosen_method_can_be_varied(queue):
    sweep = queue(advanced(vary="Method.method.order", values="1, 2", vary_2="Method.method", values_2="ghvb,nesterov"))["sweep"][0]
    assert [list(point.settings.values()) for point in sweep.points] == [[1, "ghvb"], [1, "nesterov"], [2, "ghvb"], [2, "nesterov"]]
    ghvb, nesterov = sweep.points[0].result, sweep.points[1].result
    torch.testing.assert_close(ghvb, nesterov, rtol=1e-3, atol=1e-3)  # both are Euler at order 1
    assert not torch.allclose(ghvb, sweep.points[2].result, rtol=1e-2)


def test_a_model_changed_by_the_varied_node_is_watched_once(queue):
    guidance = node("Distillery_ProjectedGuidance", "Guidance", model=[MODEL, 0], **{
        "method": "apg", "method.eta": 0.0, "method.norm_threshold": 0.0, "method.momentum": 0.0,
    })
    slow = {SAMPLER: sampler("Fast", model=["guidance", 0]), REFERENCE: sampler("Slow", steps=4)}
    sweep = swept(queue, {"vary": "Guidance.method.eta", "values": "1.0, 0.0"}, guidance=guidance, **slow)
    assert [point.evaluations for point in sweep.points] == [8, 8]


def test_loaders_can_be_varied(queue):
    sweep = swept(queue, {"vary": f"{MODEL}.name", "values": "shapes-dit"})
    assert [point.evaluations for point in sweep.points] == [8]


def test_an_equal_prompt_runs_nothing_again_and_a_new_list_measures_all_afresh(queue):
    prompt = graph()
    first = queue(prompt)["sweep"][0]
    assert queue(prompt) == {}, "all from ComfyUI's cache"
    again = queue(graph({"values": "2, 3, 5, 6"}))["sweep"][0]
    assert [point.evaluations for point in again.points] == [4, 6, 10, 12]
    assert torch.equal(first.points[0].result, again.points[0].result)
    assert first.points[0].seconds != again.points[0].seconds


@pytest.mark.parametrize("kind", ["CLASSIC", "LRU", "NONE"])
def test_it_works_with_every_cache_of_comfyui(executor, kind):
    other = execution.PromptExecutor(
        executor.server, cache_type=execution.CacheType[kind], cache_args={"ram": 0.0, "ram_inactive": 0.0, "lru": 3}
    )
    for values in ("2, 3", "3, 2"):
        points = swept(queue_on(other), {"values": values}).points
        assert [f"Fast.steps {point.evaluations // 2}" for point in points] == [f"Fast.steps {v}" for v in values.split(", ")]


def test_the_plot_gets_a_front_a_table_and_a_sheet(queue):
    decode = {name: node("VAEDecode", samples=[name, 0], vae=[MODEL, 2]) for name in (SAMPLER, REFERENCE)}
    seen = queue(graph(
        sweep={"candidate": ["fast", 0], "reference": ["slow", 0], "values": "8, 2, 5"},
        fast=decode[SAMPLER], slow=decode[REFERENCE],
        plot=node("Distillery_SweepPlot", sweep=["sweep", 0], error="1 - SSIM"),
        **{name: node("TestPasses", value=["plot", i], name=name) for i, name in enumerate(["image", "pictures", "text", "json"])},
    ))  # fmt: skip
    points = json.loads(seen["json"][0])["points"]
    assert [point["evaluations"] for point in points] == [16, 4, 10]
    assert points[0]["error"] == 0, "8 steps are the reference"
    assert points[1]["non_dominated"]["evaluations"] and points[0]["non_dominated"]["evaluations"]
    assert [line.split()[0] for line in seen["text"][0].splitlines()] == ["Fast.steps", "8", "2", "5"]
    assert seen["image"][0].shape[0] == 1 and seen["image"][0].std() > 0
    assert seen["pictures"][0].shape[1] > 2 * 64  # two lines of pictures


def test_a_sweep_of_latents_has_no_sheet_and_no_errors_of_pictures(queue):
    def plot(error):
        return node("Distillery_SweepPlot", sweep=["sweep", 0], error=error)

    text = queue(graph(plot=plot("relative error"), text=node("TestPasses", value=["plot", 2], name="text")))["text"][0]
    assert "relative error" in text
    with pytest.raises(ValueError, match="error is 'delta E', which is for pictures, and this sweep holds latents"):
        queue(graph(plot=plot("delta E"), text=node("TestPasses", value=["plot", 2], name="text")))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"vary": "Nope.steps"}, r"vary is 'Nope.steps': no node has that title or id.*sampler \(Fast\)"),
        ({"vary": "Slow.steps"}, "vary is 'Slow.steps': node 'Slow' is not before candidate"),
        ({"vary": "CLIPTextEncode.text", "values": "a"}, "2 nodes are called 'CLIPTextEncode'. Use one of the ids"),
        ({"vary": "Fast.step"}, "vary is 'Fast.step': 'Fast' has no input 'step'. It has: .*steps"),
        ({"vary": "Fast.model"}, "values: the input takes MODEL, of which no list can be written"),
        ({"values": "4, many"}, "values has 'many', and the input takes a whole number from 1 to 10000"),
        ({"values": "4, 4.5"}, "values has '4.5', and the input takes a whole number"),
        ({"values": "0"}, "values has '0', and the input takes a whole number from 1 to 10000"),
        ({"vary": "Fast.cfg", "values": "1, nan"}, "values has 'nan', and the input takes a number from 0.0 to 100.0"),
        ({"vary": "Fast.sampler_name", "values": "euler, eulr"}, "values has 'eulr', and the input takes one of euler, "),
        ({"values": " , "}, "values is empty: list the values to try"),
        ({"values": ",".join(map(str, range(1, 66)))}, "values: 65 is 65 settings, and a sweep takes at most 64"),
        ({"vary_2": "Fast.cfg"}, "values_2 is empty"),
        ({"vary_2": "Fast.steps", "values_2": "1"}, "vary_2 is 'Fast.steps', the input that vary names"),
        ({"vary": "size.width", "values": "64, 128"}, r"candidate has shape \(1, 16, 8, 16\) and reference \(1, 16, 8, 8\)"),
        ({"reference": ["picture", 0]}, "reference and candidate are one LATENT and one IMAGE"),
        ({"candidate": [SIZE, 0], "vary": "size.width", "values": "64"}, "vary: no node after the varied input takes a MODEL"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_swept_is_refused_with_the_remedy(warm_queue, inputs, message):
    picture = node("EmptyImage", width=64, height=64, batch_size=1, color=0)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        warm_queue(graph(inputs, picture=picture))


def test_a_result_without_sampling_is_refused(warm_queue):
    with pytest.raises(ValueError, match="candidate: nothing sampled with the MODEL or GUIDER that was watched"):
        warm_queue(graph({"vary": "Fast.denoise", "values": "0"}))


def test_a_list_is_refused(warm_queue):
    listed = node("TestListed", value=[SAMPLER, 0])
    with pytest.raises(ValueError, match="candidate: a node before it gives a list of 2"):
        warm_queue(graph({"candidate": ["listed", 0]}, listed=listed))
