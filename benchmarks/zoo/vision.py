"""Images: attention, convolutions and mixtures of both."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator

from benchmarks.zoo.batches import image, images, integers, labelled_image
from benchmarks.zoo.decoders import short
from benchmarks.zoo.entry import TINY, Batch, Entry, Fields, hugging_face

WINDOWS: Fields = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
STAGES: Fields = {"hidden_sizes": [16, 32], "depths": [1, 2], "embedding_size": 16}
PYRAMID: Fields = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [16, 32],
    "num_attention_heads": [2, 4],
    "mlp_ratios": [2, 2],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
}

CLASSIFIERS: Mapping[str, Fields] = {
    "ViTForImageClassification": {},
    "DeiTForImageClassification": {},
    "ViTMSNForImageClassification": {},
    "IJepaForImageClassification": {},
    "BeitForImageClassification": {"use_relative_position_bias": True},
    "Data2VecVisionForImageClassification": {},
    "Dinov2ForImageClassification": {},
    "Dinov2WithRegistersForImageClassification": {},
    "SwinForImageClassification": WINDOWS,
    "Swinv2ForImageClassification": WINDOWS,
    "DonutSwinForImageClassification": WINDOWS,
    "FocalNetForImageClassification": {
        "embed_dim": 16,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "ConvNextForImageClassification": {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 2], "patch_size": 4},
    "ConvNextV2ForImageClassification": {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 2], "patch_size": 4},
    "ResNetForImageClassification": STAGES,
    "RegNetForImageClassification": {**STAGES, "groups_width": 8},
    "BitForImageClassification": {**STAGES, "num_groups": 4},
    "MobileNetV1ForImageClassification": {"depth_multiplier": 0.25},
    "MobileNetV2ForImageClassification": {"depth_multiplier": 0.25},
    "EfficientNetForImageClassification": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.5,
        "hidden_dim": 320,
        "initializer_range": 0.2,  # at 0.02 the signal vanishes, and gradients are denormal
    },
    "PoolFormerForImageClassification": {
        "num_encoder_blocks": 2,
        "depths": [1, 2],
        "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "padding": [2, 1],
    },
    "SegformerForImageClassification": {**PYRAMID, "sr_ratios": [2, 1]},
    "PvtV2ForImageClassification": {**PYRAMID, "sr_ratios": [2, 1]},
    "PvtForImageClassification": {**PYRAMID, "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2]},
    "SwiftFormerForImageClassification": {"depths": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32]},
    "MobileViTForImageClassification": {
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
        "patch_size": 2,
    },
    "CvtForImageClassification": {
        "embed_dim": [16, 32, 32],
        "num_heads": [1, 2, 2],
        "depth": [1, 2, 3],
        "drop_path_rate": [0.0, 0.0, 0.0],
        "drop_rate": [0.0, 0.0, 0.0],
        "attention_drop_rate": [0.0, 0.0, 0.0],
    },
    "LevitForImageClassification": {
        "hidden_sizes": [16, 32, 48],
        "num_attention_heads": [2, 2, 3],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
        "patch_size": 16,
        "down_ops": [["Subsample", 8, 2, 4, 2, 2], ["Subsample", 8, 4, 4, 2, 2]],
    },
    "TextNetForImageClassification": {"stem_out_channels": 8, "hidden_sizes": [8, 8, 16, 16, 32]},
    "HGNetV2ForImageClassification": {
        "embedding_size": 16,
        "stem_channels": [3, 8, 16],
        "stage_in_channels": [16, 16],
        "stage_mid_channels": [8, 8],
        "stage_out_channels": [16, 32],
        "stage_num_blocks": [1, 1],
        "stage_downsample": [False, True],
        "stage_downsample_strides": [2, 2],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 5],
        "stage_numb_of_layers": [2, 2],
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
    },
    "HieraForImageClassification": {
        "embed_dim": 16,
        "image_size": [32, 32],
        "patch_size": [7, 7],
        "depths": [1, 1],
        "num_heads": [1, 2],
        "num_query_pool": 1,
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, False],
    },
}
LARGER = {"LevitForImageClassification": 64, "TextNetForImageClassification": 64, "CvtForImageClassification": 64}


def maps(generator: Generator, rows: int) -> Batch:
    """Images to maps of classes, one a pixel."""
    size = TINY["image_size"]
    return {"pixel_values": image(generator, rows), "labels": integers(generator, 2, rows, size, size)}


def masked(generator: Generator, rows: int) -> Batch:
    """An image and the patches of it that are masked."""
    mask = integers(generator, 2, rows, 16).bool()
    return {"pixel_values": image(generator, rows), "bool_masked_pos": mask}


def entries() -> list[Entry]:
    """Every vision model: classes of images, of pixels, and masked images."""
    classifiers = [
        hugging_face(
            short(architecture),
            "vision",
            architecture,
            images(LARGER[architecture]) if architecture in LARGER else labelled_image,
            fields,
        )
        for architecture, fields in CLASSIFIERS.items()
    ]
    segmenter = {**PYRAMID, "sr_ratios": [2, 1], "decoder_hidden_size": 16}
    return [
        *classifiers,
        hugging_face("segformer-maps", "vision", "SegformerForSemanticSegmentation", maps, segmenter),
        hugging_face("vit-masked", "vision", "ViTForMaskedImageModeling", masked, {"encoder_stride": 8}),
    ]
