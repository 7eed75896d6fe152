"""Wegman-Carter authentication of the classical channel: pads, tags, transcripts, sessions."""
