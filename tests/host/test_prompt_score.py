"""Prompt Score in the real ComfyUI: core's own text encoders and vision model, small and random, from files."""

import json
import math

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import tiny
import torch
from comfy import sdxl_clip
from comfy.supported_models_base import ClipTarget
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tools.install import COMFYUI

WIDTH, SIDE = 32, 16
TEXT = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 2}
VISION = {**TEXT, "hidden_size": 48, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 8, "projection_dim": WIDTH}
CORE_VISION = {**VISION, "hidden_act": "quick_gelu", "num_channels": 3, "model_type": "clip_vision_model"}
CONFIGS = {
    "clip_l_model_config": {**TEXT, "num_hidden_layers": 3},
    "clip_g_model_config": {**TEXT, "hidden_size": 40, "num_hidden_layers": 3},
}
PROMPTS = ["a red square", "a large (green:1.4) star, at the top", "a cat"]


def random(weights, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) / (value.shape or [1])[-1] ** 0.5
            for name, value in weights.items() if value.is_floating_point()}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """transformers' CLIP with random weights, in the precision that core uses, and its file."""
    text = {**CONFIGS["clip_l_model_config"], "eos_token_id": 49407}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=WIDTH)).eval()
    dtype = comfy.model_management.text_encoder_dtype(torch.device("cpu"))
    for name, value in random(model.state_dict(), seed=5).items():
        model.get_parameter(name).data = value.to(dtype).float()
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file({name: value.to(dtype) for name, value in model.state_dict().items()}, path)
    return model, path


def load(path):
    """As Load CLIP does, but smaller."""
    with torch.inference_mode():
        return comfy.sd.load_clip([str(path)], model_options={"model_config": dict(CONFIGS["clip_l_model_config"])})


@pytest.fixture(scope="module")
def clip(published):
    return load(published[1])


@pytest.fixture(scope="module")
def sdxl(published, tmp_path_factory):
    """As DualCLIPLoader makes it, but smaller: the same clip_l, and a clip_g that lies transposed as in checkpoints."""
    path = tmp_path_factory.mktemp("clip") / "g.safetensors"
    with torch.inference_mode():
        made = comfy.sd.CLIP(ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel), model_options=CONFIGS)
        towers = made.cond_stage_model
        weights = random(towers.clip_g.transformer.state_dict(), seed=1)
        towers.clip_g.load_sd(weights)
        weights["text_projection"] = weights.pop("text_projection.weight").T.contiguous()
        save_file(weights, path)
        towers.clip_l.load_sd(load_file(published[1]))
    made.patcher.cached_patcher_init = (comfy.sd.load_clip_model_patcher, ([str(published[1]), str(path)], None))
    return made


@pytest.fixture(scope="module")
def clip_vision(published):
    return vision(published[0])


def vision(model, **changes):
    """A genuine CLIP_VISION with the weights of this CLIP."""
    made = comfy.clip_vision.ClipVisionModel({**CORE_VISION, **changes})
    missing, _ = made.load_sd({name: value for name, value in model.state_dict().items() if name.startswith("vis")})
    assert not missing
    return made


def pictures(count, side=SIDE, seed=0):
    levels = torch.randint(256, (count, side, side, 3), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


@pytest.fixture
def score(nodes, clip, clip_vision):
    def run(images, prompt, lines="one prompt", crop="center", clip=clip, clip_vision=clip_vision):
        node = nodes["Distillery_PromptScore"]
        with torch.inference_mode():
            text, found = tiny.run(
                node, images=images, clip_vision=clip_vision, clip=clip, prompt=prompt, lines=lines, crop=crop
            )
        return text, json.loads(found)

    return run


def test_it_agrees_with_transformers(score, published, clip_vision):
    images = pictures(len(PROMPTS))
    text, found = score(images, "\n".join(PROMPTS) + "\n\n", "a prompt each")
    plain = [prompt.replace("(green:1.4)", "green") for prompt in PROMPTS]  # what the strength of a word does not change
    tokenizer = CLIPTokenizer.from_pretrained(COMFYUI / "comfy" / "sd1_tokenizer")
    tokens = tokenizer(plain, padding="max_length", max_length=77, return_tensors="pt")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip_vision.image_mean, clip_vision.image_std))
    with torch.no_grad():
        out = published[0](pixel_values=(images.movedim(-1, 1) - mean) / std, **tokens)
    cosines = (out.image_embeds * out.text_embeds).sum(-1)  # both are of length 1
    expected = (100 * cosines.clamp_min(0)).tolist()
    assert min(expected) > 1 and len(set(expected)) == 3
    assert found["prompt_score"]["items"] == pytest.approx(expected, abs=1e-4)
    assert found["prompt_score"]["mean"] == pytest.approx(sum(expected) / 3, abs=1e-4)
    assert (found["prompts"], found["text_encoder"], found["cut"]) == (PROMPTS, "clip_l", [])
    worst = expected.index(min(expected))
    assert f"worst: picture {worst + 1}, {PROMPTS[worst]!r}" in text
    assert f"prompt score {found['prompt_score']['mean']:.4g} of 100, by clip_l" in text


def test_each_picture_is_scored_on_its_own(score):
    images = pictures(19, 24)  # not a whole number of batches, and not the size of the network
    found = score(images, PROMPTS[0])[1]["prompt_score"]["items"]
    assert found == pytest.approx([score(image[None], PROMPTS[0])[1]["prompt_score"]["mean"] for image in images], abs=1e-4)
    as_lines = score(images, "\n".join([PROMPTS[0]] * 19), "a prompt each")[1]
    assert as_lines["prompt_score"]["items"] == found
    assert score(images[:1], "a red\nsquare")[1]["prompt_score"]["items"] == pytest.approx(found[:1], abs=1e-4)


def test_only_the_middle_counts_or_all_of_the_picture(score):
    wide = pictures(1, 2 * SIDE)[:, :SIDE]
    changed = wide.clone()
    changed[:, :, 0] = 0
    assert score(wide, "x")[1]["prompt_score"] == score(changed, "x")[1]["prompt_score"]
    assert score(wide, "x", crop="none")[1]["prompt_score"] != score(changed, "x", crop="none")[1]["prompt_score"]


def test_of_several_encoders_the_one_of_the_same_width_is_asked(score, published, sdxl, clip_vision):
    images = pictures(3)
    alone, both = score(images, PROMPTS[0])[1], score(images, PROMPTS[0], clip=sdxl)[1]
    assert both == alone and both["text_encoder"] == "clip_l"
    wide = vision(wider(published[0]), projection_dim=40)
    found = score(images, PROMPTS[0], clip=sdxl, clip_vision=wide)[1]
    with torch.inference_mode():
        pooled = sdxl.encode_from_tokens(sdxl.tokenize(PROMPTS[0]), return_pooled=True)[1]  # of clip_g, for SDXL
        expected = 100 * torch.cosine_similarity(wide.encode_image(images)["image_embeds"], pooled).clamp_min(0)
    assert found["text_encoder"] == "clip_g"
    assert found["prompt_score"]["items"] == pytest.approx(expected.tolist(), abs=1e-4) and max(expected) > 1


def wider(model):
    """The same CLIP with a projection of pictures to 40 numbers."""
    other = torch.nn.Module()
    other.vision_model, other.visual_projection = model.vision_model, torch.nn.Linear(48, 40, bias=False)
    torch.nn.init.normal_(other.visual_projection.weight, generator=torch.Generator().manual_seed(0))
    return other


def test_the_encoder_of_a_checkpoint_is_taken_too(score, clip, published):
    of_checkpoint = clip.clone()
    of_checkpoint.patcher.cached_patcher_init = (comfy.sd.load_checkpoint_clip_patcher, (str(published[1]), None))
    assert score(pictures(1), "x", clip=of_checkpoint) == score(pictures(1), "x")


def test_nothing_changes_on_the_users_clip_and_clip_skip_changes_nothing(score, clip):
    skipped = clip.clone()
    skipped.clip_layer(-2)
    with torch.inference_mode():
        before = skipped.encode_from_tokens(skipped.tokenize("x"), return_pooled=True)
    tower = clip.cond_stage_model.clip_l
    options = {name: value for name, value in vars(tower).items() if not name.startswith("_")}
    weights = {name: value.clone() for name, value in tower.state_dict().items()}
    assert score(pictures(2), "x", clip=skipped) == score(pictures(2), "x")
    assert {name: value for name, value in vars(tower).items() if not name.startswith("_")} == options
    assert all(torch.equal(value, weights[name]) for name, value in tower.state_dict().items())
    with torch.inference_mode():
        after = skipped.encode_from_tokens(skipped.tokenize("x"), return_pooled=True)
    assert all(map(torch.equal, before, after))


def test_of_a_text_that_is_too_long_the_beginning_counts(score):
    words = "red " * 75
    assert score(pictures(1), words)[1]["cut"] == []
    text, found = score(pictures(1), words + "cat")
    assert found["prompt_score"] == score(pictures(1), words)[1]["prompt_score"] != score(pictures(1), "cat")[1]["prompt_score"]
    assert found["cut"] == [words + "cat"] and "1 prompt(s) longer than a CLIP reads: only the beginning counts" in text


def test_it_shows_its_words(nodes, clip, clip_vision):
    node = nodes["Distillery_PromptScore"]
    with torch.inference_mode():
        out = node.EXECUTE_NORMALIZED(
            images=pictures(1), clip_vision=clip_vision, clip=clip, prompt="x", lines="one prompt", crop="none"
        )
    assert out.ui["text"] == [out.args[0]] and out.ui["prompt_score"] == [json.loads(out.args[1])]


def test_it_shows_progress_and_can_be_interrupted(score):
    steps, prompts = [], "\n".join(["a", "b"] * 20)
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, **others: steps.append((value, total)))
    try:
        score(pictures(40), prompts, "a prompt each")
        assert steps[-1] == (5, 5)  # two different prompts, and three batches
        comfy.model_management.interrupt_current_processing()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            score(pictures(40), prompts, "a prompt each")
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)


# Bad input

NAN = pictures(3)
NAN[1, 0, 0, 0] = math.nan


@pytest.mark.parametrize(
    ("images", "prompt", "lines", "complaint"),
    [
        (NAN, "x", "one prompt", "images: picture 1 holds NaN or infinite values"),
        (NAN[:0], "x", "one prompt", r"images: got shape \(0, 16, 16, 3\)"),
        (pictures(2), " \n ", "one prompt", "prompt is empty: write what"),
        (pictures(2), "a\nb\nc", "a prompt each", "prompt has 3 lines, and there are 2 images: .*choose 'one prompt'"),
        (pictures(2), "", "a prompt each", "prompt has 0 lines, and there are 2 images"),
    ],
)
def test_bad_pictures_and_prompts_are_named_before_any_work(score, images, prompt, lines, complaint):
    with pytest.raises(ValueError, match=complaint):
        score(images, prompt, lines, clip=None, clip_vision=None)


def test_towers_of_different_clips_are_refused(score, published):
    wide = vision(wider(published[0]), projection_dim=40)
    with pytest.raises(ValueError, match="embeddings of 40 numbers.*found: clip_l with 32.*ViT-L goes with clip_l"):
        score(pictures(1), "x", clip_vision=wide)


@pytest.mark.parametrize("changes", [{"model_type": "siglip_vision_model"}, {"projection_dim": None}], ids=["siglip", "bare"])
def test_a_vision_model_that_shares_no_space_with_a_text_is_refused(score, changes):
    config = {name: value for name, value in {**CORE_VISION, **changes}.items() if value is not None}
    other = comfy.clip_vision.ClipVisionModel(config)
    with pytest.raises(ValueError, match="clip_vision is a .*Load a CLIP ViT with Load CLIP Vision"):
        score(pictures(1), "x", clip_vision=other)


def without(weights):
    """A file without its projection, as an SD1 checkpoint: core leaves what was in memory."""
    del weights["text_projection.weight"]


def identity(weights):
    """As older versions of core filled in what was missing, and saved it."""
    weights["text_projection.weight"] = torch.eye(WIDTH, dtype=weights["text_projection.weight"].dtype)


def misplaced(weights):
    """In the file, but where core does not find it."""
    weights["text_model.text_projection.weight"] = weights.pop("text_projection.weight")


@pytest.mark.parametrize("change", [without, identity, misplaced])
def test_an_encoder_without_its_projection_is_refused(score, published, tmp_path, change):
    weights = load_file(published[1])
    change(weights)
    save_file(weights, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="clip: clip_l comes without its text projection.*text_projection.weight by Load CLIP"):
        score(pictures(1), "x", clip=load(tmp_path / "clip.safetensors"))


def test_an_encoder_changed_by_a_lora_is_refused(score, clip):
    changed = clip.clone()
    key = "clip_l.transformer.text_projection.weight"
    assert changed.add_patches({key: (torch.ones(WIDTH, WIDTH),)}, 0.1)
    with pytest.raises(ValueError, match="clip is changed by a LoRA or a merge.*Connect it as it comes from its loader"):
        score(pictures(1), "x", clip=changed)
    before = score(pictures(1), "x")
    changed.load_model()  # puts the change into the weights that both share, for as long as it is loaded
    assert score(pictures(1), "x") == before


def test_an_encoder_of_an_unknown_file_is_refused(score, clip):
    unknown = clip.clone()
    unknown.patcher.cached_patcher_init = None
    with pytest.raises(ValueError, match="clip: its loader does not say from which file it is.*Use Load CLIP"):
        score(pictures(1), "x", clip=unknown)


def test_the_bundled_encoder_is_refused(score, nodes):
    bundled = tiny.run(nodes["Distillery_LoadDemoModel"], name="shapes-dit")[1]
    with pytest.raises(ValueError, match="no text encoder of a CLIP in clip does .found: shapes with 128"):
        score(pictures(1), "x", clip=bundled)
