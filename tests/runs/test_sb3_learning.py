"""The comparison with SB3's own policies: what counts as solved, what is run again, and one real run."""

import json
from pathlib import Path

import pytest

from neurocoder.runs.reproduce import sb3_learning as sb3
from neurocoder.runs.reproduce import sb3_pong
from neurocoder.runs.reproduce.sb3_learning import Row, Task


def row(
    policy: str, seed: int, returns: list[float], algorithm: str = "ppo", env: str = "CartPole-v1"
) -> Row:
    steps = [1000 * (i + 1) for i in range(len(returns))]
    return Row(algorithm=algorithm, env=env, policy=policy, seed=seed, steps=steps, returns=returns,
               minutes=0.0, command="", versions={})  # fmt: skip


def test_solved_is_the_first_of_three_evaluations_at_the_threshold() -> None:
    assert sb3.steps_to_solve(row("stock", 0, [500, 475, 300, 475, 500, 500, 500]), 475) == 4000
    assert sb3.steps_to_solve(row("stock", 0, [500, 500, 474.9, 500, 500]), 475) == float("inf")


def test_the_table_has_medians_over_seeds_and_says_never() -> None:
    rows = [row("stock", s, [0] * s + [500] * 3) for s in range(3)]  # 1000, 2000, 3000
    rows += [row("neurocoder", s, [0, 0, 500, 500, 500]) for s in range(2)] + [row("neurocoder", 2, [0])]
    rows += [row("stock", 0, [-90.0], "ppo", "Acrobot-v1")]  # nothing beside it yet
    text = sb3.table(reversed(rows))
    assert text.splitlines()[2:] == [
        "| ppo, CartPole-v1 | 475 | 1,000, 2,000, 3,000 | 3,000, 3,000, never | 1.50 |"
    ]


def test_what_is_kept_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    ran: list[tuple[str, int]] = []

    def train(task: Task, policy: str, seed: int) -> Row:
        ran.append((policy, seed))
        return row(policy, seed, [500.0] * 3, task.algorithm, task.env)

    monkeypatch.setattr(sb3, "train", train)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("stock", 0, [480.0] * 3)) + "\n")
    for _ in range(2):
        sb3.reproduce(tmp_path, seeds=2, only="ppo/CartPole-v1", jobs=1)
    assert ran == [("neurocoder", 0), ("stock", 1), ("neurocoder", 1)]
    assert len(sb3.read_rows(tmp_path / "rows.jsonl")) == 4
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "| 1.00 |" in (tmp_path / "table.md").read_text() and "1.00" in capsys.readouterr().out


@pytest.mark.parametrize("policy", sb3.POLICIES)
def test_a_run_is_the_real_zoo_s(policy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib import resources

    # the product's file, shortened
    text = (resources.files("neurocoder.runs.zoo") / "ppo.yml").read_text("utf-8")
    (tmp_path / "ppo.yml").write_text(text.replace("n_epochs: 20", "n_epochs: 1"))
    monkeypatch.setattr(sb3.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(sb3, "EPISODES", 2)
    made = sb3.train(Task("ppo", "CartPole-v1", 475, 600, 256, "MlpPolicy"), policy, 0)
    assert made["steps"] == [256, 512, 768] and all(0 < value <= 500 for value in made["returns"])
    assert ("MlpPolicy" in made["command"]) == (policy == "stock")
    assert made["versions"].keys() == {"torch", "stable-baselines3", "sb3-contrib", "rl_zoo3"}


def test_pong_goes_on_where_it_was_saved_and_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sb3_pong, "GAMES", 2)
    for _ in range(2):  # the second finds all done
        sb3_pong.reproduce(tmp_path, "neurocoder", steps=512, every=256)
    rows = sb3_pong.lines_of(tmp_path / "neurocoder.csv")
    assert [int(row["agent_steps"]) // 256 for row in rows] == [1, 2]
    sb3_pong.reproduce(tmp_path, "neurocoder", steps=768, every=256)
    steps = [int(row["agent_steps"]) for row in sb3_pong.lines_of(tmp_path / "neurocoder.csv")]
    assert len(steps) == 3 and 768 <= steps[-1] <= 768 + 3 * 2
    sb3_pong.reproduce(tmp_path, "plot")
    assert (tmp_path / "pong.png").stat().st_size > 1000
