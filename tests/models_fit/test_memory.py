from __future__ import annotations

import numpy as np

from models.memory import NO_LIMIT, largest_batch


def test_llama_8b_on_one_h100():
    # 0.9 x 80 GB less 16.06 GB of weights, 131,072 bytes for each of 2,048 tokens: 208.4 requests.
    assert largest_batch(80e9, 16.06e9, 131_072, 2048) == 208


def test_the_limit_falls_with_the_length_and_rises_with_the_memory():
    by_length = largest_batch(80e9, 16e9, 131_072, np.array([512, 1024, 8192, 100_000]))
    assert (np.diff(by_length) < 0).all()
    assert (np.diff(largest_batch(np.array([40e9, 80e9, 141e9]), 16e9, 131_072, 2048)) > 0).all()


def test_nothing_fits_beside_weights_that_do_not_fit():
    assert largest_batch(80e9, 141e9, 131_072, 2048).tolist() == 0


def test_no_limit_where_a_figure_is_missing():
    found = largest_batch([0, 80e9, 80e9], [0, 0, 0], [131_072, 0, 131_072], [100, 100, 0])
    assert found.tolist() == [NO_LIMIT] * 3


def test_an_exact_fit_counts():
    assert largest_batch(100.0, 50.0, 2.0, 5.0, memory_share=1.0) == 5
