"""Token pruning in genuine networks: what is computed for fewer tokens, what stays untouched, and what is refused.

The oracle of all that composes: with a share so small that no whole token goes, every hook is at work and nothing may change.
"""

import comfy.samplers
import node_helpers
import pytest
import tiny
import tiny_architectures
import torch
from comfyui_distillery.nodes.architectures import architecture_of
from comfyui_distillery.nodes.host_pruning import NETWORKS, OVERRIDE, Pruning, tokens_of, with_pruning
from comfyui_distillery.samplers.core import complete
from comfyui_distillery.samplers.pruning import KNOBS
from test_cache import every_second, failing, places
from test_parallel import control_net
from tiny import assert_same
from torch.utils.flop_counter import FlopCounterMode

NO_TOKEN = 1e-6
KNOWN = [name for name, (path, *_) in tiny_architectures.NETWORKS.items() if tokens_of(tiny_architectures.class_of(path))]
with_values = node_helpers.conditioning_set_values


def pruned(nodes, model, share=0.5, **settings):
    """(model, report)"""
    return tiny.run(nodes["Distillery_TokenPruning"], model=model, share=share, **complete(KNOBS[1:], settings))


def sample(model, noise, positive=None, negative=None, **given):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or tiny.prompt(1), negative or tiny.prompt(2))
    guider.set_cfg(4.0)
    return tiny.sample_with(guider, noise, tiny.schedule(model, 4), **given)


def shares(run):
    """Of each row; none where a cache stood in."""
    return [row.get("values", {}).get("share of tokens pruned", 0.0) for row in run["steps"]]


@pytest.fixture(scope="module")
def runs(built):
    """(model, run, plain): run(model) samples from the same noise; plain is the result with all tokens."""
    model, shape = built
    noise = tiny.noise_for(shape, [1, 2])

    def run(patched, **settings):
        return tiny.sample(patched, noise, **settings)

    return model, run, run(model)


@pytest.fixture(scope="module")
def eps():
    return tiny.build("eps")


# Each architecture


class Watched:
    """An architecture run once, with settings or without. queries, keys: of each of its attentions; their tokens come second."""

    def __init__(self, name, share=None, scale=1.0, given=None, **settings):
        self.network, self.queries, self.keys = tiny_architectures.build(name), [], []
        self.options = {"sigmas": torch.tensor([0.3]), "sample_sigmas": torch.linspace(1, 0, 5), OVERRIDE: self.override}
        self.settings = None if share is None else complete(KNOBS, {"share": share, "early": 0.0, **settings})
        self.scale, self.given = scale, {"transformer_options": self.options, **(given or {})}
        with FlopCounterMode(display=False) as flops:
            self.output = tiny_architectures.run(name, self.call)
        self.flops = flops.get_total_flops()

    def override(self, func, q, k, v, heads, *args, **kwargs):
        dim = 2 if kwargs.get("skip_reshape") else 1
        self.queries.append(q.movedim(dim, 1).flatten(2))
        self.keys.append(k.shape[dim])
        return func(q, k, v, heads, *args, **kwargs)

    def call(self, x, t, **given):
        x, given = self.scale * x, given | self.given
        if self.settings is None:
            return self.network(x, t, **given)
        self.pruning = Pruning(self.network, self.settings, x.shape, self.options)
        with self.pruning.at_work():
            return self.network(x, t, **given)

    @property
    def lengths(self):
        return [q.shape[1] for q in self.queries]


@pytest.mark.parametrize("name", KNOWN)
def test_an_architecture_computes_for_fewer_tokens_and_stays_as_it_was(name):
    plain = Watched(name)
    before = places(plain.network)
    hooked = Watched(name, NO_TOKEN)
    assert all(map(torch.equal, hooked.output, plain.output))
    for settings in ({}, {"ranking": "attention"}, {"keys": True}):
        half = Watched(name, 0.5, **settings)
        assert half.pruning.pruned == half.pruning.seen // 2 > 0
        assert half.flops < plain.flops or settings  # ranking by attention has its own price
        assert all(output.isfinite().all() for output in half.output)
        assert not all(map(torch.equal, half.output, plain.output)) or name == "Z-Image, pixels"  # most is padding, which goes first
        fewer = [a < b for a, b in zip(half.lengths, plain.lengths, strict=True)]
        assert any(fewer)
        assert ([a < b for a, b in zip(half.keys, plain.keys)] == fewer) is ("keys" in settings)
    assert places(plain.network) == before
    assert half.options[OVERRIDE] == half.override


@pytest.mark.parametrize("name", KNOWN)
def test_text_always_stays(name):
    """In the first attention that is pruned: up to the first query that depends on the latent, all are there; the rest is a choice."""
    plain, other, most = Watched(name), Watched(name, scale=2.0), Watched(name, 0.9)
    pruned = next(number for number, (a, b) in enumerate(zip(most.lengths, plain.lengths)) if a < b)
    whole, moved, kept = (watched.queries[pruned][0] for watched in (plain, other, most))
    text = int((whole != moved).any(dim=1).float().argmax())
    assert torch.equal(kept[:text], whole[:text])
    assert (kept[:, None] == whole).all(dim=-1).any(dim=1).all()
    assert text >= 5 or not any(where.joint for _, where, _ in most.pruning.blocks)  # as long as the prompt
    assert len(kept) - text == pytest.approx(0.1 * (len(whole) - text), abs=1)


def test_an_attention_with_a_mask_stays_whole():
    """Its feed-forward parts are pruned none the less."""
    plain, half = (Watched("Qwen-Image", share, given={"attention_mask": torch.zeros(1, 5)}) for share in (None, 0.5))
    assert half.lengths == plain.lengths
    assert half.pruning.pruned == half.pruning.seen // 2 > 0 and half.flops < plain.flops


@pytest.mark.parametrize("name", KNOWN)
def test_feed_forward_parts_go_token_by_token(name):
    """Each module that is said to: for some of the tokens it makes what it makes for all."""
    network = tiny_architectures.build(name)
    pruning = Pruning(network, complete(KNOBS, {}), (1, 4, 8, 8), {"sigmas": torch.ones(1), "sample_sigmas": torch.ones(2)})
    modules = [block.module.get_submodule(where.feed_forward) for block, where, _ in pruning.blocks]
    seen = {}
    hooks = [module.register_forward_hook(lambda module, args, output: seen.update({module: (*args, output)})) for module in modules]
    tiny_architectures.run(name)
    for hook in hooks:
        hook.remove()
    assert set(seen) == set(modules)
    for module, (x, output) in seen.items():
        with torch.inference_mode():
            some = module(x.flatten(1, -2)[:, 1::2])
        torch.testing.assert_close(some, output.flatten(1, -2)[:, 1::2], rtol=1e-4, atol=1e-5)


# On a MODEL


def test_share_0_hooks_nothing(nodes, runs):
    model, run, plain = runs
    assert with_pruning(model, {"share": 0.0}).wrappers == model.wrappers
    assert_same(run(pruned(nodes, model, 0.0)[0]), plain)


def test_two_runs_are_equal_and_the_report_says_how_many(nodes, runs):
    model, run, plain = runs
    for ranking in ("distinct", "attention"):
        patched, report = pruned(nodes, model, ranking=ranking, early=0.5)
        result = run(patched)
        assert_same(run(patched), result)
        assert not torch.equal(result, plain)
        (first, *_), rows = report.runs, report.runs[0]["steps"]
        assert first["totals"]["branches"] == {"cond": 4, "uncond": 4}
        assert shares(first)[2:] == [0.5, 0.5] and max(shares(first)[:2]) < 0.5
        assert rows[0]["reason"].endswith("first steps spare the outermost blocks")
        assert rows[3]["decision"] == "prune" and rows[3]["reason"].endswith("token updates left out")
    assert_same(run(model), plain)


def test_a_batch_is_its_items_one_by_one(nodes, built):
    model, shape = built
    patched, _ = pruned(nodes, model)
    together = tiny.sample(patched, tiny.noise_for(shape, [1, 2]))
    alone = [tiny.sample(patched, tiny.noise_for(shape, [seed])) for seed in (1, 2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_nothing_is_left_on_the_model(nodes, runs):
    model, run, plain = runs
    network = model.model.diffusion_model
    before, patched = places(network), pruned(nodes, model)[0]
    whole = run(patched)
    last = [module for module in network.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)][-1]
    hook = failing(last, 2)
    with pytest.raises(KeyError, match="empty"):
        run(patched)
    hook.remove()
    assert places(network) == before and OVERRIDE not in patched.model_options.get("transformer_options", {})
    assert_same(run(patched), whole)
    assert_same(run(model), plain)


# Beside the rest


def check(nodes, model, noise, **given):
    """With hooks at work and no token to go nothing changes; with half of them gone two runs are equal, and differ from none."""
    plain = sample(model, noise, **given)
    assert_same(sample(pruned(nodes, model, NO_TOKEN)[0], noise, **given), plain)
    patched, report = pruned(nodes, model)
    result = sample(patched, noise, **given)
    assert_same(sample(patched, noise, **given), result)
    assert not torch.equal(result, plain) and 0 < max(shares(report.runs[0])) <= 0.5


def test_areas_of_two_sizes(nodes, eps):
    model, shape = eps
    regions = with_values(tiny.prompt(3), {"area": (8, 4, 0, 4), "strength": 1.0}) + tiny.prompt(1)
    check(nodes, model, tiny.noise_for(shape, [1, 2]), positive=regions)


def test_prompts_in_calls_of_their_own_and_masks(nodes, built):
    model, shape = built
    ((tokens, rest),) = tiny.prompt(2)
    left = torch.zeros(1, *shape[1:])
    left[..., :4] = 1
    regions = with_values(tiny.prompt(1), {"mask": left}) + with_values(tiny.prompt(3), {"mask": 1 - left})
    check(nodes, model, tiny.noise_for(shape, [1, 2]), positive=regions, negative=[[tokens[:, :7], rest]], denoise_mask=left[None])


def test_control(nodes, eps):
    model, shape = eps
    hint = control_net(model).set_cond_hint(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    hinted = [[tokens, {**rest, "control": hint, "control_apply_to_uncond": True}] for tokens, rest in tiny.prompt(1)]
    check(nodes, model, tiny.noise_for(shape, [1]), positive=hinted)


def test_guidance_rules_and_caches(nodes, built):
    model, shape = built
    noise = tiny.noise_for(shape, [1])
    check(nodes, tiny.guided(nodes, model), noise)
    for site in ("prediction", "mlp"):
        cached, _ = every_second(nodes, model, site=site, min_steps=1)
        check(nodes, cached, noise)
        assert_same(sample(every_second(nodes, pruned(nodes, model, NO_TOKEN)[0], site=site, min_steps=1)[0], noise), sample(cached, noise))


def test_where_self_attention_is_replaced_all_tokens_stay(nodes, eps):
    model, shape = eps
    noise = tiny.noise_for(shape, [1])
    model = model.clone()
    model.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0)
    patched, report = pruned(nodes, model)
    assert_same(sample(patched, noise), sample(model, noise))
    row = tiny.totals(report)[1][0]
    assert row["decision"] == "whole" and row["reason"] == "another node has replaced self-attention here"


# Refused


def test_what_cannot_be_pruned_is_refused(nodes, flow):
    model, _ = flow
    with pytest.raises(ValueError, match="tokens pruned already: keep one Token Pruning node"):
        pruned(nodes, pruned(nodes, model)[0])
    for wrong in ({"share": 0.95}, {"share": -0.1}, {"share": 0.5, "renew": 0}, {"share": 0.5, "ranking": "random"}):
        with pytest.raises(ValueError, match=f"{list(wrong)[-1]} is .*: it must be"):
            with_pruning(model, wrong)


@pytest.mark.parametrize("name", ["PixArt", "LTXAV"])
def test_networks_that_are_not_known_are_refused_by_name(nodes, name):
    model, _ = tiny.build("flow")
    model.model.diffusion_model = tiny_architectures.build(name)
    with pytest.raises(ValueError, match="does not know which tokens are the image: use a Cache, .* UNetModel"):
        pruned(nodes, model)


def test_every_entry_names_groups_of_its_architecture():
    for path, groups in NETWORKS.items():
        if groups:
            assert set(groups) == {group.path for group in architecture_of(tiny_architectures.class_of(path)).groups}
