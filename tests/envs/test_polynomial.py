"""Polynomial auto-regression: every chunk is one polynomial of the degree and the coefficients that the paper draws."""

import numpy as np
import pytest

from neurocoder.envs import EnvError
from neurocoder.envs.polynomial import Polynomial, polynomial


def test_horner_equals_the_sum_of_powers():
    coefficients = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 0.25]])
    x = np.array([-2.0, 0.0, 3.0])
    expected = [[sum(c * v**k for k, c in enumerate(row)) for v in x] for row in coefficients]
    np.testing.assert_allclose(polynomial(coefficients, x), expected)


def test_inputs_are_x_and_the_value_before():
    inputs, targets, mask = Polynomial(length=60, chunks=6).draw(0, 0, 5)
    assert mask is None and inputs.shape == (60, 5, 2) and targets.shape == (60, 5, 1)
    np.testing.assert_allclose(inputs[:, 3, 0], np.linspace(-5, 5, 60), rtol=1e-6)
    assert (inputs[0, :, 1] == 0).all()
    np.testing.assert_array_equal(inputs[1:, :, 1], targets[:-1, :, 0])


def test_each_chunk_is_a_polynomial_of_degree_at_most_ten_and_no_two_are_one():
    _, targets, _ = Polynomial(length=100, chunks=5).draw(1, 0, 20)
    x = np.linspace(-5, 5, 100)

    def misfit(rows):
        fit = np.polynomial.Polynomial.fit(x[rows], targets[rows, :, 0].mean(axis=1), 10)
        return np.abs(fit(x[rows]) - targets[rows, :, 0].mean(axis=1)).max()

    assert max(misfit(slice(20 * c, 20 * c + 20)) for c in range(5)) < 1e-5
    assert misfit(slice(10, 30)) > 1e-3


def test_chunks_are_scaled_to_one_and_small_ones_are_left_alone():
    _, targets, _ = Polynomial(length=100, chunks=5).draw(2, 0, 400)
    largest = np.abs(targets[..., 0]).reshape(5, 20, 400).max(axis=1)
    assert largest.max() <= 1 + 1e-6
    assert (largest[[0, 4]] > 0.999).mean() > 0.95  # |x| >= 3: nearly all reach beyond 1
    assert (largest[2] < 0.999).mean() > 0.1  # around x = 0 many stay below


def test_degrees_and_coefficients_are_uniform():
    """A lone chunk on both sides of 0, unscaled where it is small: its Taylor coefficients are what was drawn."""
    task = Polynomial(length=11, chunks=11)  # a point each: at x = 0 the value is c_0
    _, targets, _ = task.draw(3, 0, 4000)
    constants = targets[5, :, 0]
    assert abs(constants.mean()) < 0.03 and abs(constants.std() - 1 / np.sqrt(3)) < 0.02
    assert constants.min() < -0.98 and constants.max() > 0.98


def test_noise_has_its_deviation_and_is_seen_one_step_later():
    quiet = Polynomial(length=100, chunks=5).draw(4, 7, 200)
    noisy = Polynomial(length=100, chunks=5, noise=0.1).draw(4, 7, 200)
    assert abs((noisy.targets - quiet.targets).std() - 0.1) < 0.005
    np.testing.assert_array_equal(noisy.inputs[1:, :, 1], noisy.targets[:-1, :, 0])


def test_draws_depend_on_seed_and_index_only():
    task = Polynomial()
    np.testing.assert_array_equal(task.draw(1, 5, 4).targets, Polynomial().draw(1, 5, 4).targets)
    assert (task.draw(1, 5, 4).targets != task.draw(1, 6, 4).targets).any()
    assert (task.draw(1, 5, 4).targets != task.draw(2, 5, 4).targets).any()


@pytest.mark.parametrize(
    "options", [{"chunks": 3}, {"chunks": 0}, {"length": 0}, {"noise": -1.0}, {"noise": np.nan}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(EnvError, match="must"):
        Polynomial(**options)
