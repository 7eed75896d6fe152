"""The prediction that decides when a Batch ends exists for every count that a channel can cause."""

from session_pair import PARAMETERS

from qkdnode.distill.amplification import predicted_profit
from qkdnode.distill.estimation import Tally
from qkdnode.distill.settings import Settings


def test_a_rare_intensity_that_was_always_wrong_is_not_predicted_to_err_more_often_than_it_was_detected() -> None:
    tally = Tally(n_z=(1_000_000, 1), n_x=(40_000, 1_000), m_x=(400, 10), m_z=(5_000, 1), reconciled_bits=500_000)
    assert predicted_profit(Settings(agreed=PARAMETERS), tally, 100_000) <= 1_000_000
