"""Text to batches of token sequences, addressed by one global sample counter."""

from ciuic_dist.data.batches import Batches, accumulation
from ciuic_dist.data.corpus import Corpus, load
from ciuic_dist.data.errors import DataError

__all__ = ["Batches", "Corpus", "DataError", "accumulation", "load"]
