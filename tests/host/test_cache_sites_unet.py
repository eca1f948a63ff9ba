"""The deep branch and the encoder of UNets, against full runs in which core's own patches put the kept tensors in."""

import pytest
import torch
from comfyui_distillery.nodes.host_sites_unet import DeepBranch, Encoder
from test_cache_sites import UNETS, caller, never
from tiny_architectures import build

SITES = [DeepBranch(1), DeepBranch(2), DeepBranch(3), Encoder()]


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator)


def control_for(network, name, seed, rows=1):
    """What ControlNets and T2I adapters add to every input block, the middle and every output block, in core's order."""
    noise, skips = drawn(seed), Encoder().evaluate(caller(name, rows), network, never).kept
    shapes = [tensor.shape for tensor in skips]
    return lambda: {
        "input": [noise(*shape) for shape in shapes[-2::-1]],
        "middle": [noise(*shapes[-1])],
        "output": [noise(*shape) for shape in shapes[:-1]],
    }


def putting_in(site, kept):
    """Patches of core's that put what was kept into a full run."""

    def at_output(h, hsp, options):
        return (kept[0].clone(), hsp) if options["block"] == ("output", 4 - site.depth) else (h, hsp)

    if isinstance(site, DeepBranch):
        return {"output_block_patch": [at_output]}
    return {
        "input_block_patch": [lambda h, options: kept[options["block"][1]].clone()],
        "middle_block_after_patch": [lambda values: {"h": kept[-1].clone()}],
    }


@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.title} {getattr(site, 'depth', '')}")
@pytest.mark.parametrize("name", sorted(UNETS))
def test_a_skip_on_a_new_latent_is_a_full_run_with_what_was_kept_put_in(name, site):
    network = build(name)
    kept = site.evaluate(caller(name), network, never).kept
    x = drawn(7)(len(caller(name)()), 4, 8, 8)
    expected = caller(name, x=x, transformer_options={"patches": putting_in(site, kept)})()
    made = site.evaluate(caller(name, x=x), network, lambda signal: kept)
    assert torch.equal(made.output, expected)
    assert torch.equal(expected, caller(name)()) == isinstance(site, Encoder), "an encoder's skip does not see the latent"


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.title} {getattr(site, 'depth', '')}")
@pytest.mark.parametrize("name", sorted(UNETS))
def test_control_goes_to_the_blocks_it_is_meant_for(name, site, rows):
    network = build(name)
    values = control_for(network, name, 3, rows)()

    def controlled():
        fresh = {key: [tensor.clone() for tensor in tensors] for key, tensors in values.items()}
        return caller(name, rows, control=fresh)()

    plain = controlled()
    assert not torch.allclose(plain, caller(name, rows)(), rtol=1e-3, atol=1e-4)
    full = site.evaluate(controlled, network, never)
    assert torch.equal(full.output, plain)
    assert torch.equal(site.evaluate(controlled, network, lambda signal: full.kept).output, plain)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_new_control_reaches_the_outer_blocks(depth):
    network, site = build("SD1"), DeepBranch(depth)
    kept = site.evaluate(caller("SD1"), network, never).kept
    control = control_for(network, "SD1", 4)

    def controlled(values, **more):
        return caller("SD1", control={key: list(tensors) for key, tensors in values.items()}, **more)

    values = control()
    expected = controlled(values, transformer_options={"patches": putting_in(site, kept)})()
    assert torch.equal(site.evaluate(controlled(values), network, lambda signal: kept).output, expected)
    short = {"input": [None, *values["input"][-1:]], "output": values["output"][:1]}  # and no middle, as T2I adapters have it
    expected = controlled(short, transformer_options={"patches": putting_in(site, kept)})()
    given = controlled(short)
    assert torch.equal(site.evaluate(given, network, lambda signal: kept).output, expected)


@pytest.mark.parametrize("name", ["SD1", "SDXL"])
def test_the_control_of_the_caller_is_used_up_by_a_copy(name):
    network = build(name)
    control = control_for(network, name, 3)()
    counts = {key: len(values) for key, values in control.items()}
    kept = DeepBranch(1).evaluate(caller(name), network, never).kept
    DeepBranch(1).evaluate(caller(name, control=control), network, lambda signal: kept)
    assert {key: len(values) for key, values in control.items()} == counts


@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.title} {getattr(site, 'depth', '')}")
@pytest.mark.parametrize("name", ["SD1", "SDXL"])
def test_the_patches_of_other_packs_see_the_blocks_that_run_under_their_own_numbers(name, site):
    network, seen, places = build(name), [], []

    def noting(kind):
        def attention(n, context, value, options):
            seen.append((kind, *options["block"], options["transformer_index"], options["block_index"]))
            return n, context, value

        return attention

    def at_input(h, options):
        places.append((options["block"], h.shape))
        return h

    def at_output(h, hsp, options):
        places.append((options["block"], h.shape, hsp.shape))
        return h, hsp

    def at_middle(values):
        places.append(("middle", values["h"].shape))
        return values

    patches = {
        "attn1_patch": [noting("self")], "attn2_patch": [noting("cross")], "input_block_patch": [at_input],
        "input_block_patch_after_skip": [at_input], "output_block_patch": [at_output], "middle_block_after_patch": [at_middle],
    }  # fmt: skip
    call = caller(name, transformer_options={"patches": patches})
    kept = site.evaluate(call, network, never).kept
    all_seen, all_places = list(seen), list(places)
    seen.clear()
    places.clear()
    site.evaluate(call, network, lambda signal: kept)

    def runs(place, number):
        if isinstance(site, Encoder):
            return place == "output"
        return number < site.depth if place == "input" else place == "output" and number >= 4 - site.depth

    assert seen == [entry for entry in all_seen if runs(*entry[1:3])]
    if isinstance(site, Encoder):
        assert places == all_places
    else:
        assert places == [entry for entry in all_places if entry[0] != "middle" and runs(*entry[0])]
    assert patches["output_block_patch"] == [at_output]


def test_a_patch_that_writes_over_what_it_gets_leaves_what_was_kept():
    network = build("SD1")

    def freeu(h, hsp, options):
        h[:, : h.shape[1] // 2] *= 1.3
        return h, hsp

    call = caller("SD1", transformer_options={"patches": {"output_block_patch": [freeu]}})
    plain = call()
    for site in SITES:
        kept = site.evaluate(call, network, never).kept
        for _ in range(2):
            assert torch.equal(site.evaluate(call, network, lambda signal: kept).output, plain)  # noqa: B023


def test_a_unet_without_a_middle_block_can_be_cached():
    """As the small ones made of SDXL are."""
    network, call = build("SDXL"), caller("SDXL")
    middle, network.middle_block = network.middle_block, None
    try:
        plain = call()
        for site in SITES:
            full = site.evaluate(call, network, never)
            assert torch.equal(full.output, plain)
            assert torch.equal(site.evaluate(call, network, lambda signal: full.kept).output, plain)  # noqa: B023
            assert network.middle_block is None
    finally:
        network.middle_block = middle


def test_deeper_branches_leave_less_out():
    network = build("SD1")
    kept = {depth: DeepBranch(depth).evaluate(caller("SD1"), network, never).kept for depth in (1, 2, 3)}
    assert [DeepBranch(depth).evaluate(caller("SD1"), network, lambda s: kept[depth]).left_out for depth in kept] == [7, 5, 3]  # noqa: B023
    assert not DeepBranch(4).fits(network)
