"""The maze, the grid world, rewards, scores and imitation data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkin.dice import (
    PointMaze,
    Transitions,
    episode_returns,
    flatten_episodes,
    grid_transitions,
    grid_world,
    imitation_transitions,
    maze_demonstrations,
    maze_rollout,
    maze_step,
    normalize_observations,
    normalized_score,
    policy_value,
    process_rewards,
    reference_returns,
    success_rate,
    value_iteration,
    worst_episode_gap,
)

DRAWING = "S.#\n..G\n#.."


def test_maze_wall_goal_and_rim():
    maze = PointMaze()
    at = jnp.array([[0.48, 0.3], [0.48, 0.8], [0.9, 0.2], [0.01, 0.5], [0.52, 0.65]])
    move = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [-9.0, 0.0], [-1.0, 1.0]])
    new, reward, done = maze_step(maze, at, move)
    expected = [[0.48, 0.3], [0.53, 0.8], [0.9, 0.15], [0.0, 0.5], [0.52, 0.65]]
    np.testing.assert_allclose(new, expected, atol=1e-6)
    np.testing.assert_array_equal(done, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(reward, [-1, -1, 0, -1, -1])


def test_demonstrations_reach_the_goal_and_flatten(key):
    made = jax.jit(lambda k: maze_demonstrations(k, PointMaze(), 6))(key)
    assert float(success_rate(made)) == 1.0
    data, ids = flatten_episodes(made)
    assert set(ids.tolist()) == set(range(6))
    np.testing.assert_array_equal(
        np.flatnonzero(data.terminal), np.flatnonzero(np.diff(ids, append=9))
    )
    inside = np.flatnonzero(np.diff(ids) == 0)
    np.testing.assert_array_equal(data.next_observation[inside], data.observation[inside + 1])


def test_a_policy_against_the_wall_fails():
    right = lambda position, time: jnp.array([[1.0, 0.0]])
    out = maze_rollout(PointMaze(), right, jnp.array([[0.1, 0.1]]), 40)
    assert float(success_rate(out)) == 0.0
    assert bool(out.valid.all())


def test_grid_optimum_by_breadth_first_search():
    world = grid_world(DRAWING)
    value = value_iteration(world, 0.5)
    steps = np.full(len(world.cells), -1)
    steps[world.goal], wave = 0, [world.goal]
    for depth in range(1, 9):
        wave = [
            s for s in range(len(steps)) if steps[s] < 0 and set(world.successor[s]) & set(wave)
        ]
        steps[wave] = depth
    # n steps to the goal cost n - 1, discounted.
    np.testing.assert_allclose(value, [-(1 - 0.5 ** max(n - 1, 0)) / 0.5 for n in steps], rtol=1e-6)


def test_policy_value_against_iteration():
    world = grid_world(DRAWING)
    uniform = jnp.full((len(world.cells), 4), 0.25)
    value = np.zeros(len(world.cells))
    for _ in range(200):
        after = world.reward + 0.9 * (1 - world.terminal) * value[world.successor]
        value = np.where(np.arange(len(value)) == world.goal, 0.0, after.mean(1))
    np.testing.assert_allclose(policy_value(world, uniform, 0.9), value, rtol=1e-4)
    assert len(grid_transitions(world).reward) == 4 * (len(world.cells) - 1)


def test_returns_of_complete_episodes():
    rewards, ends = np.arange(6.0), np.array([0, 1, 0, 0, 1, 0])
    assert episode_returns(rewards, ends).tolist() == [1, 9]
    cut = np.array([0, 0, 0, 1, 0, 0])
    assert episode_returns(rewards, ends, timeouts=cut).tolist() == [1, 5, 4]
    assert episode_returns(np.ones(7), np.zeros(7), max_steps=3).tolist() == [3, 3]
    assert episode_returns(np.ones(2), np.zeros(2)).tolist() == []


def test_reward_schemes():
    rewards, ends = np.array([1.0, 1.0, 3.0]), np.array([0, 1, 1])
    np.testing.assert_allclose(process_rewards(rewards, ends, scheme="locomotion"), rewards * 1000)
    assert process_rewards(rewards, ends, scheme="imitation").tolist() == [0, 0, 0]
    assert process_rewards(rewards, ends, scheme="none").tolist() == [1, 1, 3]
    assert process_rewards(ends, ends, scheme="antmaze").tolist() == [-3, 0, 0]
    with pytest.raises(ValueError, match="different return"):
        process_rewards(rewards, np.zeros(3), scheme="locomotion")
    with pytest.raises(ValueError, match="scheme='square'"):
        process_rewards(rewards, ends, scheme="square")
    with pytest.raises(ValueError, match=r"nan in row 1"):
        process_rewards(np.array([0, np.nan, 0]), ends, scheme="none")
    with pytest.raises(ValueError, match="terminals like rewards"):
        process_rewards(rewards, ends[1:], scheme="none")


def test_scores():
    np.testing.assert_allclose(normalized_score(np.array([-20.272305, 3234.3]), "hopper"), [0, 100])
    assert reference_returns("maze2d-umaze-dense-v1") == reference_returns("maze2d-dense-umaze-v1")
    assert reference_returns("HalfCheetah-v5") == reference_returns("halfcheetah-random-v2")
    assert float(jax.jit(lambda g: normalized_score(g, "antmaze-umaze-v2"))(0.5)) == 50.0
    with pytest.raises(ValueError, match="name='pong-v4'"):
        normalized_score(1.0, "pong-v4")
    np.testing.assert_allclose(worst_episode_gap([-1.0, -3.0, 9.0], first=2), -0.5)
    with pytest.raises(ValueError, match="mean other than 0"):
        worst_episode_gap([])


def test_imitation_takes_one_trajectory():
    s = np.arange(8.0).reshape(4, 2)
    data = Transitions(s, s, np.ones(4), s + 1, np.zeros(4))
    one = imitation_transitions(data, np.array([0, 1, 1, 2]), 1)
    assert one.observation.tolist() == s[1:3].tolist()
    assert one.reward.tolist() == [0, 0]
    standard, (shift, scale) = normalize_observations(one)
    np.testing.assert_allclose(standard.observation * scale + shift, one.observation)
    np.testing.assert_allclose(standard.observation.mean(0), 0, atol=1e-7)
    with pytest.raises(ValueError, match="episode=7"):
        imitation_transitions(data, np.array([0, 1, 1, 2]), 7)
    with pytest.raises(ValueError, match="episode_ids"):
        imitation_transitions(data, np.array([0, 1]), 1)


@pytest.mark.parametrize("drawing", ["S.\n.", "S?G", "SSG", "..."])
def test_bad_drawings(drawing):
    with pytest.raises(ValueError, match="drawing"):
        grid_world(drawing)


def test_bad_numbers(key):
    with pytest.raises(ValueError, match="num_episodes"):
        maze_demonstrations(key, PointMaze(), 0)
    with pytest.raises(ValueError, match="horizon"):
        maze_rollout(PointMaze(), lambda p, t: p, jnp.zeros((1, 2)), 0)
    with pytest.raises(ValueError, match="policy of shape"):
        policy_value(grid_world(DRAWING), jnp.ones((2, 4)), 0.9)
