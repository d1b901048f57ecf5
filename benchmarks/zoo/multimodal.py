"""Text with images."""

from __future__ import annotations

import torch
from torch import Generator

from benchmarks.zoo.batches import image, integers, pairs, tokens
from benchmarks.zoo.entry import Batch, Entry, Fields, hugging_face

IMAGE_TOKEN = 4
PATCHES = 16

LAYERS: Fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT: Fields = {
    **LAYERS,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LANGUAGE: Fields = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
VISION: Fields = {**LAYERS, "image_size": 32, "patch_size": 8}
TWO: Fields = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16}
ALT: Fields = {**TWO, "text_config": {**TEXT, "project_dim": 16}}
BLIP: Fields = {
    "text_config": {**TEXT, "encoder_hidden_size": 32, "sep_token_id": 3},
    "vision_config": VISION,
    "projection_dim": 16,
    "image_text_hidden_size": 16,
}
LLAVA: Fields = {
    "text_config": {**LANGUAGE, "model_type": "llama"},
    "vision_config": {**VISION, "model_type": "clip_vision_model"},
    "image_token_id": IMAGE_TOKEN,
}
GROUPS: Fields = {
    "text_config": TEXT,
    "vision_config": {
        **VISION,
        "depths": [1, 1],
        "num_group_tokens": [8, 4],
        "num_output_groups": [8, 4],
        "num_hidden_layers": 2,
    },
    "projection_dim": 16,
    "projection_intermediate_dim": 32,
}


def contrast(generator: Generator, rows: int) -> Batch:
    """Texts and images, the matching ones to be found."""
    return {**pairs(generator, rows), "return_loss": torch.tensor(True)}


def captions(generator: Generator, rows: int) -> Batch:
    """Images to texts."""
    batch = pairs(generator, rows)
    return {**batch, "labels": batch["input_ids"].clone()}


def questions(generator: Generator, rows: int) -> Batch:
    """A text and an image to a distribution over answers."""
    return {**pairs(generator, rows), "labels": integers(generator, 2, rows, 2).float()}


def dialogues(generator: Generator, rows: int) -> Batch:
    """A text that begins with the place holders of an image."""
    ids = torch.cat([torch.full((rows, PATCHES), IMAGE_TOKEN), tokens(generator, rows)], dim=1)
    return {"input_ids": ids, "pixel_values": image(generator, rows), "labels": ids.clone()}


def entries() -> list[Entry]:
    """Every model of text with images."""
    return [
        hugging_face("clip", "multimodal", "CLIPModel", contrast, TWO),
        hugging_face("siglip", "multimodal", "SiglipModel", contrast, {"text_config": TEXT, "vision_config": VISION}),
        hugging_face("chineseclip", "multimodal", "ChineseCLIPModel", contrast, TWO),
        hugging_face("altclip", "multimodal", "AltCLIPModel", contrast, ALT),
        hugging_face("clipseg", "multimodal", "CLIPSegModel", contrast, TWO),
        hugging_face("groupvit", "multimodal", "GroupViTModel", contrast, GROUPS),
        hugging_face("blip", "multimodal", "BlipForConditionalGeneration", captions, BLIP),
        hugging_face("vilt", "multimodal", "ViltForQuestionAnswering", questions, {"num_labels": 2}),
        hugging_face("llava", "multimodal", "LlavaForConditionalGeneration", dialogues, LLAVA),
    ]
