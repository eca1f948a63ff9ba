"""Maths of training: a few-step or guidance-free student is a LoRA on a frozen base, and so is every other role beside it."""
