"""Painting the newest frame from features: equations by loops and hand, the decoder of a policy, and what it is for."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from neurocoder.agents.a3c import A3CConfig, loss_and_metrics
from neurocoder.agents.rollout import Rollout
from neurocoder.errors import ConfigError
from neurocoder.policies import Policy, PolicyConfig
from neurocoder.policies.encoders import make_encoder
from neurocoder.policies.reconstruction import CELLS, Reconstruction, coarse, unexplained_variance

SIX = gym.spaces.Discrete(6)
FRAMES = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)


def grey(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def painter(**options) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(encoder="a3c", core="none", head="linear", **options)
    return Policy(FRAMES, SIX, config)


def played(observation: torch.Tensor) -> Rollout:
    """Return a rollout of `observation` [T, B, ...]."""
    steps = observation.shape[:2]
    no = torch.zeros(steps, dtype=torch.bool)
    return Rollout(
        observation=observation,
        episode_start=no,
        action=torch.randint(0, 6, steps),
        log_prob=torch.full(steps, -1.8),
        reward=torch.randn(steps),
        terminated=no,
        truncated=no,
        truncation_value=torch.zeros(steps),
        bootstrap_value=torch.zeros(steps[1]),
        initial_state=(),
    )


# ------------------------------------------------------------------------------------------ equations


def test_a_cell_is_the_mean_of_its_pixels_by_slow_loops():
    frames = torch.randn(3, 84, 84, dtype=torch.float64)
    cells = coarse(frames).view(3, CELLS, CELLS)
    for n, row, column in np.ndindex(3, CELLS, CELLS):
        total = sum(float(frames[n, 4 * row + y, 4 * column + x]) for y in range(4) for x in range(4))
        assert float(cells[n, row, column]) == pytest.approx(total / 16)


def test_small_frames_are_painted_pixel_by_pixel():
    frames = torch.randn(2, 6, 9)
    torch.testing.assert_close(coarse(frames), frames.flatten(1))


def test_unexplained_variance_by_slow_loops():
    painted, wanted = torch.randn(2, 5, 7, dtype=torch.float64)
    left = variation = 0.0
    for cell in range(7):
        mean = sum(float(w) for w in wanted[:, cell]) / 5
        for n in range(5):
            left += float(painted[n, cell] - wanted[n, cell]) ** 2
            variation += (float(wanted[n, cell]) - mean) ** 2
    assert float(unexplained_variance(painted, wanted)) == pytest.approx(left / variation)


def test_unexplained_variance_by_hand():
    wanted = torch.tensor([[0.0, 5.0], [2.0, 5.0]])  # variation 1 + 1, all in the first cell
    assert float(unexplained_variance(wanted, wanted)) == 0.0
    assert float(unexplained_variance(wanted.mean(0).expand(2, 2), wanted)) == 1.0
    assert float(unexplained_variance(wanted + 1, wanted)) == 2.0
    assert float(unexplained_variance((wanted + 1) / 4, wanted / 4)) == 2.0  # whatever the unit
    assert (
        float(unexplained_variance(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))) == 25.0
    )  # nothing varies


# -------------------------------------------------------------------------------------- newest frame


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a3c", {}),
        ("a3c", {"standardize": True}),
        ("nature", {"standardize": True}),
        ("resnet18", {}),
        ("mlp", {}),
    ],
)
def test_the_newest_frame_is_what_the_first_layer_sees_last(name, options):
    encoder = make_encoder(name, (4, 84, 84), True, **options)
    images = grey(20, 4, 84, 84)
    encoder.fit(images)
    images[3, -1] = 0  # black: it counts as no picture where pixels are standardised
    for seen in (images, images / 255):
        expected = encoder.scaled(seen).reshape(seen.shape)[:, -1]
        torch.testing.assert_close(encoder.newest(seen), expected)


# ------------------------------------------------------------------------------------ in a policy


def test_a_decoder_changes_no_other_weight_of_a_fresh_policy_and_nothing_that_it_does():
    plain, painting = painter(), painter(reconstruction=0.5)
    assert (
        plain.reconstruction is None and float(plain.unexplained(grey(2, 4, 84, 84), torch.ones(2, 256))) == 0
    )
    assert painting.state_dict().keys() - plain.state_dict().keys() == {
        "reconstruction.decoder.weight",
        "reconstruction.decoder.bias",
    }
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, painting.state_dict()[name])
    seen, start = grey(3, 4, 84, 84), torch.zeros(3, dtype=torch.bool)
    assert torch.equal(plain.act(seen, (), start)[0], painting.act(seen, (), start)[0])


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_the_loss_has_the_weighted_share_that_is_left_once(core):
    torch.manual_seed(0)
    config = PolicyConfig(encoder="a3c", core=core, core_size=16, head="linear", reconstruction=0.3)
    policy = Policy(FRAMES, SIX, config)
    rollout = played(grey(2, 3, 4, 84, 84))
    rollout.initial_state = policy.initial_state(3)
    loss, metrics = loss_and_metrics(policy, rollout, A3CConfig())
    features = policy.evaluate(rollout.observation, rollout.initial_state, rollout.episode_start)[1]
    wanted = coarse(rollout.observation[:, :, -1].flatten(0, 1) / 255)
    left = unexplained_variance(policy.reconstruction(features.flatten(0, 1)), wanted)
    assert metrics["unexplained"] == pytest.approx(left.item(), rel=1e-5)
    assert metrics["aux_loss"] == pytest.approx(0.3 * left.item(), rel=1e-5)
    rest = metrics["policy_loss"] + 0.5 * metrics["value_loss"] - 0.01 * metrics["entropy"]
    assert loss.item() == pytest.approx(rest + metrics["aux_loss"], rel=1e-5)


def test_movement_is_what_changed_since_the_frame_before():
    """By hand: both pictures from the observation, each with the decoder's rows of its own."""
    policy = painter(reconstruction=0.5, reconstruct_movement=True)
    assert len(policy.reconstruction.decoder.bias) == 2 * CELLS * CELLS
    seen, features = grey(5, 4, 84, 84), torch.randn(5, 256)
    painted = policy.reconstruction(features)
    shares = []
    for half, picture in enumerate((seen[:, 3] / 255, seen[:, 3] / 255 - seen[:, 2] / 255)):
        mine = painted[:, half * CELLS * CELLS : (half + 1) * CELLS * CELLS]
        shares.append(unexplained_variance(mine, coarse(picture)).item())
    found = policy.unexplained(seen, features).item()
    assert found == pytest.approx(sum(shares) / 2, rel=1e-5)
    assert abs(shares[0] - shares[1]) > 1e-3  # so that a mean of one of them would be found out


def test_movement_counts_in_steps_of_standardised_pixels():
    policy = painter(reconstruction=0.5, reconstruct_movement=True, encoder_config={"standardize": True})
    policy.encoder.fit(grey(20, 4, 84, 84))
    with torch.no_grad():
        policy.reconstruction.decoder.weight.zero_()
    still = grey(6, 1, 84, 84).expand(6, 4, 84, 84)  # nothing moves: nothing of it is left to paint
    assert policy.unexplained(still, torch.randn(6, 256)).item() == pytest.approx(
        unexplained_variance(torch.zeros(()), coarse(policy.encoder.newest(still))).item() / 2, rel=1e-5
    )


def test_without_a_decoder_there_is_no_such_number():
    assert "unexplained" not in loss_and_metrics(painter(), played(grey(2, 2, 4, 84, 84)), A3CConfig())[1]


def test_encoder_and_decoder_learn_from_it_and_the_heads_do_not():
    policy = painter(reconstruction=1.0)
    seen = grey(6, 4, 84, 84)
    policy.unexplained(seen, policy.features(seen, (), torch.zeros(6, dtype=torch.bool))[0]).backward()
    for part in (policy.encoder, policy.reconstruction):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    for head in (policy.actor, policy.critic):
        assert all(p.grad is None for p in head.parameters())


def test_painting_teaches_an_encoder_where_things_are():
    """A bright square on grey noise: what can be read from the features of unseen frames, by least squares."""
    generator = np.random.default_rng(0)
    places = generator.integers(0, 68, (640, 2))
    frames = generator.integers(90, 110, (640, 4, 84, 84)).astype(np.uint8)
    for frame, (y, x) in zip(frames, places, strict=True):
        frame[-1, y : y + 16, x : x + 16] = 236
    seen, place = torch.from_numpy(frames), torch.from_numpy(places).double()
    torch.manual_seed(0)
    pixels = {"standardize": True}
    policy = Policy(
        FRAMES, SIX, PolicyConfig("a3c", "none", head="linear", encoder_config=pixels, reconstruction=1)
    )
    policy.encoder.fit(seen)
    # what rewards leave: features in which little is seen
    with torch.no_grad():
        policy.encoder.hidden[0].weight[8:] = 0

    def features(images: torch.Tensor) -> torch.Tensor:
        return policy.features(images, (), torch.zeros(len(images), dtype=torch.bool))[0]

    @torch.no_grad()
    def error() -> float:
        x = torch.cat([features(seen), torch.ones(640, 1)], 1).double()
        train, test = x[:512], x[512:]
        ridge = 1e-2 * torch.eye(x.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(train.T @ train + ridge, train.T @ place[:512])
        return float((test @ weight - place[512:]).square().mean().sqrt())

    before = error()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(6):
        for part in torch.randperm(512).split(64):
            optimizer.zero_grad()
            policy.unexplained(seen[part], features(seen[part])).backward()
            optimizer.step()
    assert before > 15 and error() < before / 2


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ConfigError, match=r"policy\.reconstruction"):
        PolicyConfig(reconstruction=weight)


def test_single_frames_are_painted_alone():
    space = gym.spaces.Box(0, 255, (1, 84, 84), np.uint8)
    torch.manual_seed(0)
    config = PolicyConfig("a3c", "none", head="linear", reconstruction=0.5, reconstruct_movement=True)
    policy = Policy(space, SIX, config)
    seen, features = grey(5, 1, 84, 84), torch.randn(5, 256)
    alone = unexplained_variance(policy.reconstruction(features), coarse(seen[:, 0] / 255))
    assert policy.unexplained(seen, features).item() == pytest.approx(alone.item(), rel=1e-5)


def test_observations_without_pictures_are_refused():
    with pytest.raises(ConfigError, match=r"reconstruction=0\.5 needs image observations"):
        Policy(gym.spaces.Box(-1, 1, (3,)), SIX, PolicyConfig(core="none", reconstruction=0.5))


def test_the_decoder_has_a_number_for_each_cell():
    made = Reconstruction(16, 84, 84)(torch.randn(5, 16))
    assert made.shape == (5, CELLS * CELLS)
    assert Reconstruction(16, 10, 30)(torch.randn(5, 16)).shape == (5, 10 * CELLS)
    torch.manual_seed(1)
    decoder = Reconstruction(256, 84, 84).decoder
    assert decoder.bias.count_nonzero() == 0
    torch.testing.assert_close(decoder.weight.T @ decoder.weight, 0.01 * torch.eye(256), atol=1e-5, rtol=0)
