"""Text encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.zoo.batches import translation
from benchmarks.zoo.decoders import short
from benchmarks.zoo.entry import Entry, Fields, hugging_face

T5: Fields = {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
PROPHET: Fields = {
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "ngram": 2,
}
GEMMA: Fields = {
    side: {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
    }
    for side in ("encoder", "decoder")
}

TABLE: Mapping[str, Fields] = {
    "T5ForConditionalGeneration": T5,
    "MT5ForConditionalGeneration": T5,
    "UMT5ForConditionalGeneration": T5,
    "LongT5ForConditionalGeneration": {**T5, "local_radius": 4},
    "SwitchTransformersForConditionalGeneration": {
        **T5,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "expert_capacity": 16,
    },
    "BartForConditionalGeneration": {},
    "MBartForConditionalGeneration": {},
    "PLBartForConditionalGeneration": {},
    "MvpForConditionalGeneration": {},
    "PegasusForConditionalGeneration": {},
    "PegasusXForConditionalGeneration": {"block_size": 8, "num_global_tokens": 4},
    "BigBirdPegasusForConditionalGeneration": {},
    "MarianMTModel": {"decoder_vocab_size": 96},
    "LEDForConditionalGeneration": {
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "M2M100ForConditionalGeneration": {},
    "NllbMoeForConditionalGeneration": {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 16},
    "BlenderbotForConditionalGeneration": {},
    "BlenderbotSmallForConditionalGeneration": {},
    "ProphetNetForConditionalGeneration": PROPHET,
    "T5GemmaForConditionalGeneration": GEMMA,
}


def entries() -> list[Entry]:
    """Every encoder-decoder, from a text to a shorter one."""
    return [
        hugging_face(short(architecture).removesuffix("mt"), "encoder-decoder", architecture, translation, fields)
        for architecture, fields in TABLE.items()
    ]
