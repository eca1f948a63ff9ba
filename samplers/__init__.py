"""Maths at inference time: torch only, nothing of ComfyUI, nothing of diffusers."""
