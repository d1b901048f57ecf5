"""Audio: raw waves with a CTC loss, and spectrograms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator

from benchmarks.zoo.batches import floats, integers, tokens, transcript
from benchmarks.zoo.decoders import short
from benchmarks.zoo.entry import Batch, Entry, Fields, hugging_face

MELS = 16
FRAMES = 32

POSITIONS: Fields = {"max_source_positions": FRAMES, "max_target_positions": 16}
WHISPER: Fields = {**POSITIONS, "num_mel_bins": MELS}
SPEECH: Fields = {**POSITIONS, "input_feat_per_channel": MELS, "conv_channels": 16}
SPECTROGRAM: Fields = {"max_length": FRAMES, "num_mel_bins": MELS}
WAVE: Fields = {
    "conv_dim": [16, 16, 16],
    "conv_kernel": [8, 4, 3],
    "conv_stride": [5, 4, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
GRADED: Fields = {**WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True}

WAVES: Mapping[str, Fields] = {
    "Wav2Vec2ForCTC": WAVE,
    "Wav2Vec2ConformerForCTC": WAVE,
    "HubertForCTC": GRADED,
    "WavLMForCTC": {**WAVE, "num_buckets": 16},
    "UniSpeechForCTC": WAVE,
    "UniSpeechSatForCTC": WAVE,
    "Data2VecAudioForCTC": {**WAVE, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2},
    "SEWForCTC": WAVE,
    "SEWDForCTC": WAVE,
}


def frames(generator: Generator, rows: int) -> Batch:
    """Spectrogram frames, time first, to a transcript."""
    return {"input_features": floats(generator, rows, FRAMES, MELS), "labels": tokens(generator, rows, 8)}


def spectrogram(generator: Generator, rows: int) -> Batch:
    """A spectrogram, frequency first, to a transcript."""
    return {"input_features": floats(generator, rows, MELS, 2 * FRAMES), "labels": tokens(generator, rows, 8)}


def labelled_sound(generator: Generator, rows: int) -> Batch:
    """Spectrogram frames to a class."""
    return {"input_values": floats(generator, rows, FRAMES, MELS), "labels": integers(generator, 2, rows)}


def entries() -> list[Entry]:
    """Every audio model."""
    waves = [
        hugging_face(short(architecture), "audio", architecture, transcript, fields)
        for architecture, fields in WAVES.items()
    ]
    return [
        *waves,
        hugging_face("whisper", "audio", "WhisperForConditionalGeneration", spectrogram, WHISPER),
        hugging_face("speech2text", "audio", "Speech2TextForConditionalGeneration", frames, SPEECH),
        hugging_face("wav2vec2bert", "audio", "Wav2Vec2BertForCTC", frames, {"feature_projection_input_dim": MELS}),
        hugging_face("spectrogram-transformer", "audio", "ASTForAudioClassification", labelled_sound, SPECTROGRAM),
    ]
