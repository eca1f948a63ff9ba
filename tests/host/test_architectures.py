"""The blocks of every network of ComfyUI: found where they are said to be, left out as if the network had never had them."""

import inspect
from contextlib import contextmanager, nullcontext

import pytest
import tiny
import tiny_architectures
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_distillery.nodes.architectures import NOT_DESCRIBED, architecture_of, blocks_of, import_path
from comfyui_distillery.nodes.host_blocks import dropped, forwards
from tiny_architectures import build, run

from tools.list_architectures import networks

HIDREAM_O1 = "comfy.ldm.hidream_o1.model.HiDreamO1Transformer"
ALL = list(tiny_architectures.NETWORKS)
NUMBERED = {  # what they do before, in or after a block goes by its number: a shorter list would be another network
    "Chroma", "Chroma Radiance", "Cosmos 1", "HiDream-I1", "Hunyuan-DiT", "Hunyuan3D 2.1", "PiD", "SVD", "TripoSplat",
    "Wan VACE",
}  # fmt: skip
STAND_INS = {  # for theirs: blocks that add nothing, written for what the callers give them and expect of them
    "double_blocks.*": lambda *, img, txt, **_: (img + 0, txt + 0),
    "double_stream_blocks.*": lambda *, image_tokens, text_tokens, **_: (image_tokens + 0, text_tokens + 0),
    "single_stream_blocks.*": lambda *, image_tokens, **_: image_tokens + 0,
    "patch_blocks.*": lambda s, y, *_, **__: (s + 0, y + 0),
}
NEEDS_A_BLOCK = {"SeedVR 2"}  # its last layer reads an embedding that a block has left


class StandIn(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.x_format = getattr(block.module, "x_format", None)  # Cosmos 1 asks for it
        self.forward = STAND_INS.get(block.group.path, lambda x, *_, **__: x + 0)


def shapes(stream):
    return stream.shape if torch.is_tensor(stream) else tuple(map(shapes, stream))


def equal(made, expected):
    return len(made) == len(expected) and all(map(torch.equal, made, expected))


@contextmanager
def without(name, blocks):
    """The network with other lists of blocks, in which these are missing: what leaving them out has to equal."""
    network, kept = build(name), []
    for path in {block.name.rpartition(".")[0] for block in blocks}:
        parent, _, attribute = path.rpartition(".")
        owner = network.get_submodule(parent)
        modules = getattr(owner, attribute)
        kept.append((owner, attribute, modules))
        rest = dict(modules.named_children())
        for block in blocks:
            if block.name.startswith(f"{path}."):
                key = block.name.rpartition(".")[2]
                if name in NUMBERED:
                    rest[key] = StandIn(block)
                else:
                    del rest[key]
        is_dict = isinstance(modules, torch.nn.ModuleDict)
        setattr(owner, attribute, torch.nn.ModuleDict(rest) if is_dict else torch.nn.ModuleList(rest.values()))
    try:
        yield
    finally:
        for owner, attribute, modules in kept:
            setattr(owner, attribute, modules)


@pytest.mark.parametrize("name", ALL)
def test_every_block_runs_once_in_the_listed_order_and_passing_through_changes_nothing(name):
    network, called = build(name), []

    def noting(block):
        def note(forward, *args, **kwargs):
            called.append(block.name)
            inputs = block.group.inputs(args, kwargs)
            output = forward(*args, **kwargs)
            for given, made in zip(inputs, output if len(inputs) > 1 else [output], strict=True):
                assert made is None or shapes(given) == shapes(made)
            return output

        return note

    plain, blocks = run(name), blocks_of(network)
    with forwards({block.module: noting(block) for block in blocks}):
        assert equal(run(name), plain)
    assert called == [block.name for block in blocks]
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize("name", ALL)
def test_the_streams_are_named_and_placed_as_in_the_forward_of_the_block(name):
    for block in blocks_of(build(name)):
        parameters = list(inspect.signature(type(block.module).forward).parameters)[1:]
        if parameters != ["args", "kwargs"]:  # as SD3's have, which pass them on
            assert [parameters[stream.place] for stream in block.group.streams] == [s.name for s in block.group.streams]


@pytest.mark.parametrize("name", ALL)
def test_leaving_out_a_block_is_having_a_network_without_it(name):
    plain = run(name)
    for index, block in enumerate(blocks_of(build(name))):
        with dropped(build(name), [index]):
            made = run(name)
        assert not equal(made, plain), f"{block.name} does nothing here: the test would prove nothing"
        with without(name, [block]):
            assert equal(made, run(name)), block.name
    assert equal(run(name), plain)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NEEDS_A_BLOCK])
def test_leaving_out_a_group_is_having_a_network_without_it(name):
    network = build(name)
    blocks = blocks_of(network)
    for group in architecture_of(type(network)).groups:
        chosen = [index for index, block in enumerate(blocks) if block.group == group]
        with dropped(network, chosen):
            made = run(name)
        with without(name, [blocks[index] for index in chosen]):
            assert equal(made, run(name)), group.path


@pytest.mark.parametrize("name", ALL)
def test_a_failing_run_leaves_nothing_behind(name):
    network = build(name)
    plain, blocks = run(name), blocks_of(network)

    def fail(forward, *args, **kwargs):
        raise RuntimeError("stopped here")

    with pytest.raises(RuntimeError, match="stopped here"), forwards({blocks[-1].module: fail}), dropped(network, [0]):
        run(name)
    assert not any("forward" in vars(module) for module in network.modules())
    assert equal(run(name), plain)


@pytest.mark.parametrize("fails", [False, True])
def test_the_override_of_another_pack_is_run_and_kept(fails):
    network, plain = build("SD3"), run("SD3")
    block, original, calls = blocks_of(network)[1].module, blocks_of(network)[1].module.forward, []

    def theirs(*args, **kwargs):
        calls.append("theirs")
        return original(*args, **kwargs)

    def ours(forward, *args, **kwargs):
        calls.append("ours")
        if fails:
            raise RuntimeError("stopped here")
        return forward(*args, **kwargs)

    block.forward = theirs
    try:
        with pytest.raises(RuntimeError) if fails else nullcontext(), forwards({block: ours}):
            assert equal(run("SD3"), plain)
        assert calls == (["ours"] if fails else ["ours", "theirs"])
        assert vars(block)["forward"] is theirs
    finally:
        del block.forward


def test_what_two_replace_runs_inside_each_other():
    network, calls = build("Flux"), []

    def noting(who):
        def note(forward, *args, **kwargs):
            calls.append(who)
            return forward(*args, **kwargs)

        return note

    block = blocks_of(network)[0].module
    with forwards({block: noting("outer")}), forwards({block: noting("inner")}):
        run("Flux")
    assert calls == ["inner", "outer"]


def test_blocks_compiled_one_by_one_can_be_left_out():
    """As other packs compile them: modules of another class, with a forward of their own on the instance."""
    network = build("Flux")
    plain, block = run("Flux"), network.double_blocks[1]
    with dropped(network, [1]):
        expected = run("Flux")
    network.double_blocks[1] = torch.compile(block, backend="eager")
    try:
        before = vars(network.double_blocks[1])["forward"]
        with dropped(network, [1]):
            assert equal(run("Flux"), expected)
        assert vars(network.double_blocks[1])["forward"] is before
        assert equal(run("Flux"), plain)
    finally:
        network.double_blocks[1] = block


def test_blocks_of_a_compiled_network_can_be_left_out():
    """As core's TorchCompileModel compiles it, by turns with and without blocks."""
    network = build("AuraFlow")
    compiled = torch.compile(network, backend="eager")
    for indices in ([], [1], [], [0, 3], [1]):
        with dropped(network, indices):
            expected = run("AuraFlow")
        with dropped(compiled, indices):
            assert equal(run("AuraFlow", compiled), expected)


@pytest.mark.parametrize("network, message", [
    (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear is not a network whose blocks this pack knows"),
    (tiny_architectures.class_of(HIDREAM_O1).__new__(tiny_architectures.class_of(HIDREAM_O1)), NOT_DESCRIBED[HIDREAM_O1]),
])  # fmt: skip
def test_an_unknown_network_is_refused_with_the_reason(network, message):
    assert blocks_of(network) is None
    with pytest.raises(ValueError, match=message):
        dropped(network, [0])


@pytest.mark.parametrize("index", [-1, 4])
def test_a_block_that_there_is_not_is_refused(index):
    with pytest.raises(ValueError, match=f"blocks names {index}, and this model has blocks 0 to 3"):
        dropped(build("Flux"), [0, index])


def test_every_network_of_the_installed_comfyui_is_described_or_has_a_reason():
    kinds = list(networks())
    assert len(kinds) > 40
    described = {import_path(kind) for kind in kinds if architecture_of(kind)}
    assert {import_path(kind) for kind in kinds} - described == set(NOT_DESCRIBED)
    assert described == {path for path, _, _ in tiny_architectures.NETWORKS.values()}, "a descriptor that no test runs"


def test_a_model_samples_with_blocks_left_out_and_as_before_afterwards(built):
    model, shape = built
    noise, network = tiny.noise_for(shape, [1, 2]), model.model.diffusion_model
    plain = tiny.sample(model, noise)

    def leaving_out(indices):
        def apply_model(executor, *args, **kwargs):
            with dropped(executor.class_obj.diffusion_model, indices):
                return executor(*args, **kwargs)

        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", apply_model)
        return tiny.sample(patched, noise)

    assert torch.equal(leaving_out([]), plain)
    assert not torch.equal(leaving_out([0]), plain)
    assert torch.equal(tiny.sample(model, noise), plain)
    assert not any("forward" in vars(module) for module in network.modules())
