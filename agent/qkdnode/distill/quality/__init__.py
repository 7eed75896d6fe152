"""What the counts of a link say beside its error rate: pure machines that see a change and name it.

An attack that leaves the error rate as it was is seen here if anywhere: full control of detectors by bright light gives
a normal QBER (Gerhardt et al., arXiv:1011.0105), but not the usual currents, rates and shares of clicks.
"""
