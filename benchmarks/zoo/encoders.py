"""Text encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Generator

from benchmarks.zoo.batches import labelled_text, language, masked
from benchmarks.zoo.decoders import short
from benchmarks.zoo.entry import Batch, Entry, Fields, hugging_face

MASKED: Mapping[str, Fields] = {
    "AlbertForMaskedLM": {"embedding_size": 16, "num_hidden_layers": 4},  # one layer, used four times
    "BertForMaskedLM": {},
    "BigBirdForMaskedLM": {},
    "CamembertForMaskedLM": {},
    "ConvBertForMaskedLM": {"embedding_size": 32},
    "Data2VecTextForMaskedLM": {},
    "DebertaForMaskedLM": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2ForMaskedLM": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DistilBertForMaskedLM": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "ElectraForMaskedLM": {"embedding_size": 16},
    "ErnieForMaskedLM": {},
    "EsmForMaskedLM": {"mask_token_id": 4},
    "EuroBertForMaskedLM": {},
    "FNetForMaskedLM": {},
    "FunnelForMaskedLM": {"block_sizes": [1, 2], "num_decoder_layers": 1, "d_head": 8, "d_inner": 48},
    "IBertForMaskedLM": {},
    "LayoutLMForMaskedLM": {"max_2d_position_embeddings": 32},
    "LongformerForMaskedLM": {"attention_window": [4, 4]},
    "MPNetForMaskedLM": {},
    "MegatronBertForMaskedLM": {},
    "MobileBertForMaskedLM": {"embedding_size": 16, "hidden_size": 32, "intra_bottleneck_size": 16},
    "ModernBertForMaskedLM": {"num_hidden_layers": 4, "local_attention": 8},
    "MraForMaskedLM": {},
    "NomicBertForMaskedLM": {},
    "NystromformerForMaskedLM": {"num_landmarks": 4, "segment_means_seq_len": 16},
    "RemBertForMaskedLM": {"input_embedding_size": 16, "output_embedding_size": 24},
    "RoFormerForMaskedLM": {},
    "RobertaForMaskedLM": {},
    "RobertaPreLayerNormForMaskedLM": {},
    "SqueezeBertForMaskedLM": {"embedding_size": 32, "intermediate_size": 48},
    "XLMRobertaForMaskedLM": {},
    "XLMRobertaXLForMaskedLM": {},
    "XmodForMaskedLM": {"default_language": "en_XX"},
    "YosoForMaskedLM": {"use_expectation": True},
    "ReformerForMaskedLM": {
        "is_decoder": False,
        "attn_layers": ["local", "local"],
        "axial_pos_embds": False,
        "feed_forward_size": 48,
        "attention_head_size": 8,
        "local_attn_chunk_length": 8,
    },
}

CLASSIFIERS: Mapping[str, Fields] = {
    "CanineForSequenceClassification": {"num_hash_buckets": 64, "local_transformer_stride": 8},
    "LiltForSequenceClassification": {"hidden_size": 48, "max_2d_position_embeddings": 32, "channel_shrink_ratio": 2},
}

# Their losses take the labels as next-token prediction does.
OTHERS: Mapping[str, Fields] = {
    "XLNetLMHeadModel": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "XLMWithLMHeadModel": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "FlaubertWithLMHeadModel": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
}


def entries() -> list[Entry]:
    """Every encoder, on masked tokens or on a class for the text."""
    tables: list[tuple[Mapping[str, Fields], Callable[[Generator, int], Batch]]] = [
        (MASKED, masked),
        (CLASSIFIERS, labelled_text),
        (OTHERS, language),
    ]
    return [
        hugging_face(short(architecture).removesuffix("with"), "encoder", architecture, batch, fields)
        for table, batch in tables
        for architecture, fields in table.items()
    ]
