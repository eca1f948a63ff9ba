"""Every site of a cache in every network it fits: evaluating changes nothing, and what was kept can stand in for what is skipped."""

from contextlib import ExitStack, contextmanager

import comfy.utils
import pytest
import tiny
import tiny_architectures
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_distillery.nodes.architectures import blocks_of
from comfyui_distillery.nodes.host_blocks import forwards
from comfyui_distillery.nodes.host_sites import Blocks, Prediction
from comfyui_distillery.nodes.host_sites_layers import LEVELS, Layers
from comfyui_distillery.nodes.host_sites_parts import PARTS, Parts
from comfyui_distillery.nodes.host_sites_unet import DeepBranch, Encoder
from tiny_architectures import build

ALL = list(tiny_architectures.NETWORKS)
SITES = {
    "prediction": Prediction(),
    "blocks": Blocks(0, 0),
    "blocks after 1": Blocks(1, 0),
    "blocks between 1 and 1": Blocks(1, 1),
    "deep branch 1": DeepBranch(1),
    "deep branch 3": DeepBranch(3),
    "encoder": Encoder(),
    **{f"{level} of a UNet": Layers(level) for level in LEVELS},
    **{kind: Parts(kind) for kind in PARTS},
}
UNETS = {"SD1", "SDXL", "SVD"}
WANS = {name for name in ALL if name.startswith("Wan")}
FLUXES = {"Flux", "Flux 2", "Chroma", "Chroma Radiance", "HunyuanVideo", "Hunyuan3D 2"}
SKIPPING = {"Hunyuan-DiT", "Hunyuan3D 2.1"}
WITHOUT_PARTS = {"SD3", "HiDream-I1", "Cosmos 1", "CogVideoX"}
CROSS = UNETS | WANS | {
    "PixArt", "Hunyuan-DiT", "Hunyuan3D 2.1", "LTXV", "LTXAV", "Cosmos Predict 2", "Anima", "Kandinsky 5", "ACE-Step",
    "ACE-Step 1.5", "Stable Audio",
}  # fmt: skip
FITS = {  # site: the networks it fits
    "prediction": set(ALL),
    "blocks": set(ALL) - UNETS - {"SeedVR 2"},
    "blocks after 1": set(ALL) - UNETS,
    "blocks between 1 and 1": set(ALL)
    - UNETS
    - {"Qwen-Image", "MageFlow", "Lens"}
    - SKIPPING
    - {"SeedVR 2"},  # two blocks in three
    "deep branch 1": UNETS,
    "deep branch 3": UNETS,
    "encoder": UNETS,
    **{f"{level} of a UNet": UNETS for level in LEVELS},
    "self-attention": set(ALL) - WITHOUT_PARTS - FLUXES,
    "cross-attention": CROSS,
    "mlp": set(ALL) - WITHOUT_PARTS,
}
ONE_ROW = {"MiniMax H3"}  # takes no batches
MIXED_ROWS = {"ACE-Step 1.5", "Hunyuan3D 2.1"}  # core gives all timbres to the first; core swaps the two prompts
ROUNDED = Blocks, Layers  # the sites whose skips are exact but for rounding: adding what was subtracted


def never(signal):
    return None


def fitting(name):
    return [(title, site) for title, site in SITES.items() if site.fits(build(name))]


def inputs_of(name, rows):
    """The inputs of ``tiny_architectures.run``, and as many rows more with other noise."""
    generator = torch.Generator().manual_seed(1)
    given = tiny_architectures.NETWORKS[name][2](lambda *shape: torch.randn(shape, generator=generator))

    def repeated(value):
        if isinstance(value, list) and torch.is_tensor(value[0]):
            return [repeated(part) for part in value]
        if not torch.is_tensor(value):
            return value
        noisy = value.is_floating_point() and value.ndim > 2
        further = [torch.randn(value.shape, generator=generator) if noisy else value for _ in range(rows - 1)]
        return torch.cat([value, *further])

    return {key: repeated(value) for key, value in given.items()}


def caller(name, rows=1, network=None, **more):
    """call() for a site: the network on its inputs, several outputs packed as core packs them."""
    network = build(name) if network is None else network

    def call():
        given = {"transformer_options": {"cond_or_uncond": list(range(rows))}, "control": None, **inputs_of(name, rows), **more}
        x = given.pop("x")
        time = torch.full((len(x[0] if isinstance(x, list) else x),), 0.7)
        with torch.inference_mode():
            made = network(x, time, **given)
        return made if torch.is_tensor(made) else comfy.utils.pack_latents(list(made))[0]

    return call


def left_out(site, network):
    """The modules that a skip spares, and of the same kind those that it does not."""
    if isinstance(site, Blocks):
        blocks = [block.module for block in blocks_of(network)]
        inside = blocks[site.first : len(blocks) - site.last]
        return inside, [block for block in blocks if block not in inside]
    if isinstance(site, (DeepBranch, Encoder)):
        inputs, outputs = list(network.input_blocks), list(network.output_blocks)
        kept = getattr(site, "depth", 0)
        first = len(outputs) - kept if kept else 0
        skipped = [*inputs[kept:], network.middle_block, *outputs[:first]]
        layers = [layer for block in skipped for layer in block]
        return layers, [layer for block in inputs[:kept] + outputs[first:] for layer in block]
    if isinstance(site, Layers):
        inside = [layer for chain in site.chains(network) for layer in chain]
        blocks = [*network.input_blocks, network.middle_block, *network.output_blocks]
        return inside, [layer for block in blocks for layer in block if layer not in inside]
    return (list(site.parts(network)), []) if isinstance(site, Parts) else ([network], [])


@contextmanager
def counted(modules):
    calls = []

    def count(forward, *args, **kwargs):
        calls.append(forward)
        return forward(*args, **kwargs)

    with forwards(dict.fromkeys(modules, count)):
        yield calls


def traces(network):
    """Module lists and overrides: what a site might leave behind."""
    lists = [(name, id(module)) for name, module in network.named_modules()]
    return lists, [name for name, module in network.named_modules() if "forward" in vars(module)]


def test_the_networks_that_each_site_fits():
    for title, site in SITES.items():
        assert {name for name in ALL if site.fits(build(name))} == FITS[title], title


def test_an_unknown_network_has_the_prediction_alone():
    unknown = torch.nn.Sequential(torch.nn.Linear(1, 1))
    assert [title for title, site in SITES.items() if site.fits(unknown)] == ["prediction"]
    assert Prediction().evaluate(lambda: torch.ones(1), unknown, never).done == 1


@pytest.mark.parametrize("name", ALL)
def test_evaluating_changes_nothing_and_keeps_the_rows_of_the_batch_first(name):
    network, rows = build(name), 1 if name in ONE_ROW else 2
    plain, before = caller(name, rows)(), traces(network)
    for title, site in fitting(name):
        asked = []
        made = site.evaluate(caller(name, rows), network, asked.append, given="given")
        assert torch.equal(made.output, plain), title
        assert (len(asked), made.skipped, made.left_out) == (1, False, 0), title
        assert torch.is_tensor(asked[0]) if isinstance(site, Blocks) and site.first else asked == ["given"], title
        assert made.kept and all(torch.is_tensor(tensor) for tensor in made.kept), title
        first = made.kept if name in MIXED_ROWS else site.evaluate(caller(name), network, never).kept
        for one, both in zip(first, made.kept, strict=True):
            assert both.shape[0] % rows == 0, title
            torch.testing.assert_close(both[: len(one)], one, rtol=1e-3, atol=1e-4, msg=f"{title}: the first row differs")
    assert traces(network) == before


@pytest.mark.parametrize("name", ALL)
def test_what_was_kept_stands_in_for_what_is_skipped(name):
    network, rows = build(name), 1 if name in ONE_ROW else 2
    call = caller(name, rows)
    plain, before = call(), traces(network)
    for title, site in fitting(name):
        full = site.evaluate(call, network, never)
        copies = [tensor.clone() for tensor in full.kept]
        spared, running = left_out(site, network)
        with counted(spared) as skipped, counted(running) as ran:
            made = site.evaluate(call, network, lambda signal: full.kept)  # noqa: B023
        assert not skipped, title
        assert len(ran) == len(running), title
        assert made.skipped and made.kept is None and made.done + made.left_out == full.done and made.left_out, title
        if isinstance(site, ROUNDED):
            torch.testing.assert_close(made.output, plain, rtol=1e-3, atol=1e-4, msg=title)
        else:
            assert torch.equal(made.output, plain), title
        assert all(map(torch.equal, full.kept, copies)), f"{title}: what was kept has been written over"
        other = site.evaluate(call, network, lambda signal: [-tensor for tensor in full.kept])  # noqa: B023
        assert not torch.allclose(other.output, plain, rtol=1e-3, atol=1e-4), f"{title}: the values are not used"
    assert traces(network) == before
    assert torch.equal(call(), plain)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_a_failing_run_leaves_nothing_behind(name, skips):
    network, call = build(name), caller(name)
    before = traces(network)

    def stopped():
        call()
        raise RuntimeError("stopped here")

    def deciding(signal):
        raise RuntimeError("stopped here")

    for title, site in fitting(name):
        if title == "prediction" and skips:
            continue
        kept = site.evaluate(call, network, never).kept
        with pytest.raises(RuntimeError, match="stopped here"):
            site.evaluate(stopped, network, lambda signal: kept if skips else None)  # noqa: B023
        assert traces(network) == before, title
        with pytest.raises(RuntimeError, match="stopped here"):
            site.evaluate(call, network, deciding)
        assert traces(network) == before, title


@pytest.mark.parametrize("name", ["SD1", "SD3", "Qwen-Image"])
def test_the_overrides_of_another_pack_survive_and_run_where_theirs_is_not_skipped(name):
    network, call, calls = build(name), caller(name), []
    plain = call()

    def theirs(module):
        original = module.forward

        def forward(*args, **kwargs):
            calls.append(module)
            return original(*args, **kwargs)

        return forward

    for title, site in fitting(name):
        modules = [module for part in left_out(site, network) for module in part]
        overrides = {module: theirs(module) for module in modules}
        with ExitStack() as stack:
            for module, override in overrides.items():
                module.forward = override
                stack.callback(vars(module).pop, "forward")
            kept = site.evaluate(call, network, never).kept
            assert set(calls) == set(modules), title
            calls.clear()
            made = site.evaluate(call, network, lambda signal: kept)  # noqa: B023
            assert not set(calls) & set(left_out(site, network)[0]), title
            assert all(vars(module)["forward"] is override for module, override in overrides.items()), title
            torch.testing.assert_close(made.output, plain, rtol=1e-3, atol=1e-4)
        calls.clear()


@pytest.mark.parametrize("title", [title for title in SITES if title != "prediction"])
def test_where_another_cache_answers_there_is_nothing_to_learn(title):
    site = SITES[title]
    network = build(min(FITS[title]))
    made = site.evaluate(lambda: torch.ones(1), network, never)
    assert (made.kept, made.skipped) == (None, False)


def test_a_model_samples_with_every_other_step_cached_and_as_before_afterwards(built):
    model, shape = built
    network, noise = model.model.diffusion_model, tiny.noise_for(shape, [1, 2])
    plain, before = tiny.sample(model, noise), traces(network)

    def caching(site, interval):
        kept, skips = [], []

        def apply_model(executor, x, *args, **kwargs):
            skips.append(bool(kept) and len(skips) % interval > 0)
            decided = kept if skips[-1] else None
            made = site.evaluate(lambda: executor(x, *args, **kwargs), network, lambda signal: decided, given=x)
            kept[:] = made.kept or kept
            return made.output

        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", apply_model)
        return tiny.sample(patched, noise), sum(skips)

    for title, site in SITES.items():
        if site.fits(network):
            made, skips = caching(site, 1)
            assert torch.equal(made, plain) and skips == 0, title
            cached, skips = caching(site, 2)
            assert skips == 2 and cached.isfinite().all() and not torch.equal(cached, plain), title
            assert torch.equal(tiny.sample(model, noise), plain) and traces(network) == before, title
