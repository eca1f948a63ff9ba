"""The bundled text encoder: a two-layer CLIP text transformer over whole words, as a genuine ``comfy.sd.CLIP``."""

import json
import re

import comfy.sd
import comfy.supported_models_base
import comfy.utils
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer

WIDTH, LAYERS, LENGTH = 128, 2, 24
START, END, UNKNOWN = 0, 1, 2


class WordTokenizer:
    """One token a word. The part of a Hugging Face tokenizer that ComfyUI's SDTokenizer calls; words come from the file."""

    def __init__(self, words):
        self.vocabulary = {word: i for i, word in enumerate(["<start>", "<end>", "<unknown>", *words])}

    @classmethod
    def from_pretrained(cls, path, words):
        return cls(words)

    def __call__(self, text):
        words = re.findall(r"[a-z]+", text.lower())
        return {"input_ids": [START, *(self.vocabulary.get(word, UNKNOWN) for word in words), END]}

    def get_vocab(self):
        return self.vocabulary

    def decode(self, token_ids, skip_special_tokens=True):
        words = list(self.vocabulary)
        return " ".join(words[i] for i in token_ids if i > UNKNOWN or not skip_special_tokens)


def tokenizer_for(words):
    class ShapesTokenizer(SDTokenizer):
        def __init__(self, embedding_directory, tokenizer_data):
            super().__init__(
                max_length=LENGTH, embedding_directory=embedding_directory, embedding_size=WIDTH, embedding_key="shapes",
                tokenizer_class=WordTokenizer, tokenizer_args={"words": words}, tokenizer_data=tokenizer_data,
            )  # fmt: skip

    class Tokenizer(SD1Tokenizer):
        def __init__(self, embedding_directory, tokenizer_data):
            super().__init__(embedding_directory, tokenizer_data, tokenizer=ShapesTokenizer, name="shapes")

    return Tokenizer


def encoder_for(words):
    config = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "hidden_act": "gelu", "max_position_embeddings": LENGTH, "eos_token_id": END,
    }  # fmt: skip

    class ShapesEncoder(SDClipModel):
        def __init__(self, device, dtype, model_options):
            super().__init__(
                device=device, dtype=dtype, max_length=LENGTH, textmodel_json_config=config, model_options=model_options,
                special_tokens={"start": START, "end": END, "pad": END}, return_projected_pooled=False,
            )  # fmt: skip
            embedding = self.operations.Embedding(len(words) + 3, WIDTH, dtype=dtype, device=device)
            self.transformer.set_input_embeddings(embedding)  # core's CLIP always makes room for 49,408 tokens

    class Encoder(SD1ClipModel):
        def __init__(self, device, dtype, model_options):
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=ShapesEncoder, name="shapes")

    return Encoder


def load_clip(path):
    """The CLIP in a safetensors file whose metadata holds its words."""
    weights, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    words = json.loads(metadata["words"])
    target = comfy.supported_models_base.ClipTarget(tokenizer_for(words), encoder_for(words))
    return comfy.sd.CLIP(target, parameters=comfy.utils.calculate_parameters(weights), state_dict=[weights])
