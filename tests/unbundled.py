"""Nodes that no bundled workflow can run, because they need weights that cannot come with the pack.

Each is run by tests/host instead, in the real ComfyUI, on small models with random weights.
"""

NEED_WEIGHTS = {  # node id: the weights, and the test that runs the node
    "Distillery_Continue": ("a run that Distill has begun on this machine", "test_distill_nodes.py"),
    "Distillery_LoadDiscriminator": ("a file that Fit Discriminator has saved on this machine", "test_discriminator.py"),
    "Distillery_TurboStages": ("a pair of networks, one for high and one for low noise, such as Wan 2.2 14B", "test_turbo_ksampler.py"),
    "Distillery_PromptScore": ("a CLIP with both its towers, of which core knows ViT-L (0.9 GB) and larger", "test_prompt_score.py"),
}
