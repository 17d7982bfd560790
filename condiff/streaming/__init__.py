"""Streams of frames: stream batch, still frames, queues, pictures in and out."""

from condiff.streaming.batch import Stream
from condiff.streaming.live import Live, Newest, Pace
from condiff.streaming.similarity import SimilarityFilter, similarity
from condiff.streaming.translator import Translator

__all__ = ["Live", "Newest", "Pace", "SimilarityFilter", "Stream", "Translator", "similarity"]
