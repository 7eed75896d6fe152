"""Whole agents on a virtual clock, network and disk: a run depends on one integer alone and can be played again."""
