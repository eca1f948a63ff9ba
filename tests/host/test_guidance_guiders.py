"""Guidance rules with each of core's guiders and sampling nodes, and with guiders in which they find no place."""

import comfy.samplers
import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from tiny import DROPS, assert_same

GUIDED = {"threshold": 1.01, "max_guided": 1000}  # adaptive that never skips: at work, unlike its neutral settings
APG = {"eta": 0.5, "norm_threshold": 2.0, "momentum": -0.5}


def made(nodes, name, model, **other):
    """One of core's guiders, from its node."""
    one, two, three = (tiny.prompt(seed) for seed in (1, 2, 3))
    inputs = {
        "CFGGuider": {"positive": one, "negative": two, "cfg": 4.0},
        "BasicGuider": {"conditioning": one},
        "DualCFGGuider": {
            "cond1": one, "cond2": two, "negative": three, "cfg_conds": 3.0, "cfg_cond2_negative": 4.0, "style": "regular",
        },
        "PerpNegGuider": {"positive": one, "negative": two, "empty_conditioning": three, "cfg": 4.0, "neg_scale": 1.0},
        "DualModelGuider": {"positive": one, "negative": two, "cfg": 4.0},
    }  # fmt: skip
    return tiny.run(nodes[name], model=model, **(inputs[name] | other))[0]


def positive_only_from(model, sigma):
    """An oracle: at this noise level and below, whatever the guider, core evaluates the positive prompt and nothing else."""

    def predict_noise(executor, x, timestep, model_options, seed):
        if timestep[0] > sigma:
            return executor(x, timestep, model_options, seed)
        guider = executor.class_obj
        return comfy.samplers.calc_cond_batch(guider.inner_model, [guider.conds["positive"]], x, timestep, model_options)[0]

    model = model.clone()
    model.add_wrapper(WrappersMP.PREDICT_NOISE, predict_noise)
    return model


GUIDERS = {
    "CFGGuider": ("CFGGuider", {}),
    "dual": ("DualCFGGuider", {}),
    "dual nested": ("DualCFGGuider", {"style": "nested"}),
    "perpendicular": ("PerpNegGuider", {}),
}
every_guider = pytest.mark.parametrize("guider", GUIDERS)


@every_guider
def test_a_rule_that_skips_nothing_is_core_bit_for_bit(nodes, built, guider):
    model, shape = built
    name, other = GUIDERS[guider]
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model)
    patched = tiny.guided(nodes, model, "adaptive", **GUIDED)
    assert_same(*(tiny.sample_with(made(nodes, name, m, **other), noise, sigmas) for m in (patched, model)))


@every_guider
@pytest.mark.parametrize("first", [0, 3])
def test_where_every_branch_is_dropped_the_positive_prediction_remains(nodes, built, guider, first):
    """Also for perpendicular guidance, whose own formula then divides zero by zero."""
    model, shape = built
    name, other = GUIDERS[guider]
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model)
    low = float(sigmas[first - 1] + sigmas[first]) / 2 if first else 9999.0
    patched, report = tiny.guided_with_report(nodes, model, "interval", unit="sigma", start=10000.0, end=low)
    expected = positive_only_from(model, low)
    assert_same(*(tiny.sample_with(made(nodes, name, m, **other), noise, sigmas) for m in (patched, expected)))
    prompts = 2 if name == "CFGGuider" else 3
    totals, rows = tiny.totals(report)
    assert totals["evaluations"] == 6 + first * (prompts - 1)
    assert sum(sum(row.get("skipped", {}).values()) for row in rows) == (6 - first) * (prompts - 1)
    assert [row["decision"] for row in rows] == ["guide"] * first + ["drop"] * (6 - first)


@pytest.mark.parametrize("rule", ["adaptive", "apg"])
def test_a_basic_guider_has_nothing_to_guide_with(nodes, built, rule):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model)
    patched = tiny.guided(nodes, model, rule)
    assert_same(*(tiny.sample_with(made(nodes, "BasicGuider", m), noise, sigmas) for m in (patched, model)))


@pytest.mark.parametrize("skipping", ["none", "adaptive"])
@pytest.mark.parametrize("shaping", ["none", "apg"])
def test_our_guider_is_the_nodes_in_a_chain(nodes, built, skipping, shaping):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model)
    rules = {"adaptive": DROPS | {"max_guided": 3}, "apg": APG, "none": {}}
    chain = model
    for rule in (skipping, shaping):
        chain = chain if rule == "none" else tiny.guided(nodes, chain, rule, **rules[rule])
    guider, report = tiny.run(
        nodes["Distillery_Guider"], model=model, positive=tiny.prompt(1), negative=tiny.prompt(2), cfg=4.0,
        skipping={"skipping": skipping, **rules[skipping]}, shaping={"shaping": shaping, **rules[shaping]},
    )  # fmt: skip
    assert_same(tiny.sample_with(guider, noise, sigmas), tiny.sample(chain, noise, sigmas=sigmas))
    assert tiny.totals(report)[0]["branches"] == {"cond": 6, "uncond": 6 if skipping == "none" else 3}


def test_our_guider_refuses_a_scale_below_1_when_it_is_made(nodes, flow):
    with pytest.raises(ValueError, match=r"cfg is 0\.9"):
        tiny.run(
            nodes["Distillery_Guider"], model=flow[0], positive=tiny.prompt(1), negative=tiny.prompt(2), cfg=0.9,
            skipping={"skipping": "adaptive"}, shaping={"shaping": "none"},
        )  # fmt: skip


@pytest.mark.parametrize("given, said", [({"cfg_conds": 0.5}, "cfg1 is 0.5"), ({"cfg_cond2_negative": 0.0}, "cfg2 is 0")])
def test_each_scale_of_a_dual_guider_is_checked(nodes, flow, given, said):
    model, shape = flow
    patched = tiny.guided(nodes, model, "adaptive")
    with pytest.raises(ValueError, match=said):
        tiny.sample_with(made(nodes, "DualCFGGuider", patched, **given), tiny.noise_for(shape, [1]), tiny.schedule(model))


# Shaping beside a guider's own formula


def test_apg_on_a_dual_guider_shapes_its_cfg_step(nodes, built):
    """One step: (middle guided away from negative by APG) + (positive - middle) cfg1, from separate predictions in float64."""
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])
    sigmas = torch.tensor([float(model.get_model_object("model_sampling").sigma_max) * 0.9, 0.0])
    into = model.model.process_latent_in

    def alone(seed):
        guider = made(nodes, "BasicGuider", model, conditioning=tiny.prompt(seed))
        return into(tiny.sample_with(guider, noise, sigmas)).double()

    positive, middle, negative = (alone(seed) for seed in (1, 2, 3))
    difference = (middle - negative).flatten(1)
    difference = difference * (2.0 / difference.norm(dim=1, keepdim=True)).clamp(max=1)
    unit = middle.flatten(1) / middle.flatten(1).norm(dim=1, keepdim=True)
    parallel = (difference * unit).sum(1, keepdim=True) * unit
    expected = middle + 3.0 * (difference - 0.5 * parallel).view_as(middle) + 3.0 * (positive - middle)
    patched = tiny.guided(nodes, model, "apg", **APG)
    got = into(tiny.sample_with(made(nodes, "DualCFGGuider", patched), noise, sigmas)).double()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_a_guider_with_two_models_can_be_shaped(nodes, built):
    model, shape = built
    noise, sigmas = tiny.noise_for(shape, [1, 2]), tiny.schedule(model)
    patched = tiny.guided(nodes, model, "apg", **APG)
    two = made(nodes, "DualModelGuider", patched, model_negative=model)
    one = made(nodes, "CFGGuider", patched)
    plain = tiny.sample_with(made(nodes, "CFGGuider", model), noise, sigmas)
    two, one = (tiny.sample_with(guider, noise, sigmas) for guider in (two, one))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-3)
    assert (one - plain).abs().max() > 0.01


@pytest.mark.parametrize("inside", [True, False])
def test_a_guider_with_two_models_may_be_driven_to_cfg_1_at_first(nodes, flow, inside):
    model, shape = flow
    noise, sigmas = tiny.noise_for(shape, [1]), tiny.schedule(model)

    def override(model):
        return tiny.unguided_from(nodes, model, sigmas, 0, 3)

    def shaped(model):
        return tiny.guided(nodes, model, "rescale", phi=0.5)

    patched = shaped(override(model)) if inside else override(shaped(model))
    result = tiny.sample_with(made(nodes, "DualModelGuider", patched, model_negative=model), noise, sigmas)
    expected = tiny.sample_with(made(nodes, "CFGGuider", patched), noise, sigmas)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


# Where there is no place for a rule


def test_skipping_is_refused_by_name_on_a_guider_with_two_models(nodes, flow):
    model, shape = flow
    guider = made(nodes, "DualModelGuider", tiny.guided(nodes, model, "adaptive"), model_negative=model)
    with pytest.raises(ValueError, match="Guider_DualModel guides by a way of its own.*Adaptive Guidance.*Use CFGGuider"):
        tiny.sample_with(guider, tiny.noise_for(shape, [1]), tiny.schedule(model))


class Apart(comfy.samplers.CFGGuider):
    """Another pack's guider that asks for one prompt at a time, in slots of its own."""

    slots = staticmethod(lambda cond, index: [cond])

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        out = []
        for index, name in enumerate(("positive", "negative")):
            conds = self.slots(self.conds[name], index)
            out.append(
                comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[
                    conds.index(self.conds[name])
                ]
            )
        return out[1] + (out[0] - out[1]) * self.cfg


class ApartInSlots(Apart):
    slots = staticmethod(lambda cond, index: [None] * index + [cond] + [None] * (1 - index))


@pytest.mark.parametrize("kind", [Apart, ApartInSlots])
@pytest.mark.parametrize("rule", ["adaptive", "apg"])
def test_a_guider_that_never_brings_the_prompts_together_is_refused_by_name(nodes, flow, kind, rule):
    model, shape = flow
    guider = kind(tiny.guided(nodes, model, rule))
    guider.set_conds(tiny.prompt(1), tiny.prompt(2))
    guider.set_cfg(4.0)
    with pytest.raises(ValueError, match=f"{kind.__name__} guides by a way of its own"):
        tiny.sample_with(guider, tiny.noise_for(shape, [1]), tiny.schedule(model))


def test_skipping_is_refused_where_a_node_evaluates_the_prompts_apart(nodes, flow):
    """Core's SkipLayerGuidanceDiTSimple asks for the negative prompt alone, on a network with layers missing."""
    model, shape = flow
    model = tiny.run(
        nodes["SkipLayerGuidanceDiTSimple"],
        model=model,
        double_layers="0",
        single_layers="",
        start_percent=0.0,
        end_percent=1.0,
    )[0]
    with pytest.raises(ValueError, match="SkipLayerGuidanceDiTSimple"):
        tiny.sample(tiny.guided(nodes, model, "adaptive", **GUIDED), tiny.noise_for(shape, [1]))
    shaped = tiny.sample(tiny.guided(nodes, model, "apg", **APG), tiny.noise_for(shape, [1]))
    assert shaped.isfinite().all() and not torch.equal(shaped, tiny.sample(model, tiny.noise_for(shape, [1])))


# Core's sampling nodes


def test_sampler_custom_advanced(nodes, built):
    model, shape = built
    sigmas = tiny.schedule(model)
    sampler = comfy.samplers.sampler_object("dpmpp_2m")
    patched = tiny.guided(nodes, model, "adaptive", **DROPS, max_guided=2)

    def run(model, sigmas, latent, noise):
        guider = made(nodes, "CFGGuider", model)
        with torch.inference_mode():
            noise = tiny.run(nodes["RandomNoise"], noise_seed=3)[0] if noise else tiny.run(nodes["DisableNoise"])[0]
            out = tiny.run(
                nodes["SamplerCustomAdvanced"], noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
            )
        return out[0]

    empty = {"samples": torch.zeros(1, *shape)}
    high, low = sigmas[:4], sigmas[3:]
    first, core_first = (run(m, high, empty, True) for m in (patched, tiny.unguided_from(nodes, model, sigmas, 2)))
    assert_same(first["samples"], core_first["samples"])
    core_second = run(tiny.unguided_from(nodes, model, sigmas, 5), low, core_first, False)
    assert_same(run(patched, low, first, False)["samples"], core_second["samples"])


def test_k_sampler_advanced_in_two_parts(nodes, built):
    """Each part is a run: two guided steps in each, whatever steps it starts and ends with."""
    model, shape = built
    sigmas = tiny.schedule(model)
    patched = tiny.guided(nodes, model, "adaptive", **DROPS, max_guided=2)

    def part(model, latent, start, end):
        with torch.inference_mode():
            return nodes["KSamplerAdvanced"]().sample(
                model, "enable" if start == 0 else "disable", 7, 6, 4.0, "euler", "simple", tiny.prompt(1), tiny.prompt(2), latent,
                start, end, "enable" if end < 6 else "disable",
            )[0]  # fmt: skip

    empty = {"samples": torch.zeros(1, *shape)}
    first = part(patched, empty, 0, 3)
    core_first = part(tiny.unguided_from(nodes, model, sigmas, 2), empty, 0, 3)
    assert_same(first["samples"], core_first["samples"])
    assert_same(
        part(patched, first, 3, 6)["samples"], part(tiny.unguided_from(nodes, model, sigmas, 5), core_first, 3, 6)["samples"]
    )
