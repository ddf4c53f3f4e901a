"""DP-SGD here and in jax_privacy at the same settings: accuracy over seeds, time per step.

Both train the same perceptron on digits from the same start, on the same Poisson batches with the
same padding, clipping, noise multiplier (epsilon 3, delta 1e-5) and step size; only the noise is
drawn by each library. jax_privacy runs under the Python of its own environment.

    python -m experiments.benchmarks.private_accuracy --peers .venv-peers/bin/python
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import harness, models, per_example_gradients

SIZES, STEPS, BATCH, CLIP_NORM, RATE = (64, 64, 64, 10), 300, 128, 1.0, 0.5
EPSILON, DELTA = 3.0, 1e-5


def settings(seeds: int) -> dict[str, Any]:
    """Everything both libraries are given."""
    import jax

    from gradkin import data, gradients

    train, test = data.load("digits"), data.load("digits", "test")
    x = data.images(train, flatten=True)
    sampling = gradients.PoissonSampling(len(x), BATCH / len(x))
    z = gradients.noise_multiplier(sampling, steps=STEPS, epsilon=EPSILON, delta=DELTA)
    given: dict[str, Any] = {
        "x": x,
        "y": train["label"],
        "x_test": data.images(test, flatten=True),
        "y_test": test["label"],
        "layers": len(SIZES) - 1,
        "clip_norm": CLIP_NORM,
        "noise_multiplier": z,
        "rate": np.float32(RATE),
        "expected_size": sampling.expected_size,
    }
    keys = jax.random.split(jax.random.key(0), (seeds, STEPS))
    rows, mask = jax.jit(jax.vmap(jax.vmap(sampling.sample)))(keys)
    given |= {"rows": np.asarray(rows), "mask": np.asarray(mask)}
    for i, (m, n) in enumerate(zip(SIZES, SIZES[1:], strict=False)):
        given[f"w{i}"] = np.asarray(models.random((seeds, m, n), 1, i)) * np.sqrt(2 / m)
        given[f"w{i}"] = given[f"w{i}"].astype(np.float32)
        given[f"b{i}"] = np.zeros((seeds, n), np.float32)
    return given


def ours(given: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Test accuracy and seconds per step of each seed."""
    import jax
    import jax.numpy as jnp

    from gradkin import gradients

    def predict(params: Any, x: Any) -> Any:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    sampling = gradients.PoissonSampling(len(given["x"]), BATCH / len(given["x"]))
    private = gradients.private_gradient(
        lambda p, x, y: -jax.nn.log_softmax(predict(p, x))[y],
        clip_norm=CLIP_NORM,
        noise_multiplier=given["noise_multiplier"],
        sampling=sampling,
    )

    @jax.jit
    def step(params: Any, key: Any, count: Any, rows: Any, mask: Any) -> Any:
        x, y = jnp.asarray(given["x"])[rows], jnp.asarray(given["y"])[rows]
        noised = private(jax.random.fold_in(key, count), params, x, y, mask=mask)
        return jax.tree.map(lambda p, g: p - given["rate"] * g, params, noised.value)

    accuracies, seconds = [], []
    for seed in range(len(given["rows"])):
        params = [{k: given[f"{k}{i}"][seed] for k in "wb"} for i in range(len(SIZES) - 1)]
        key = jax.random.key(1000 + seed)
        step(params, key, 0, given["rows"][seed, 0], given["mask"][seed, 0])
        start = time.perf_counter()
        for count in range(STEPS):
            params = step(
                params, key, count, given["rows"][seed, count], given["mask"][seed, count]
            )
        jax.block_until_ready(params)
        seconds.append((time.perf_counter() - start) / STEPS)
        logits = np.asarray(predict(params, given["x_test"]))
        accuracies.append(float(np.mean(np.argmax(logits, axis=1) == given["y_test"])))
    return accuracies, seconds


def theirs(given: dict[str, Any], python: Path) -> tuple[list[float], list[float]]:
    """The same by jax_privacy, in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("given.npz", "found.npz")]
        np.savez(paths[0], allow_pickle=False, **given)
        module = "experiments.benchmarks.peers.jax_privacy_training"
        environment = {**os.environ, "PYTHONPATH": str(harness.ROOT)}
        command = [str(python), "-m", module, *paths]
        subprocess.run(command, check=True, cwd=harness.ROOT, env=environment)
        found = np.load(paths[1])
        return found["accuracy"].tolist(), found["seconds"].tolist()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--peers", type=Path, default=per_example_gradients.PEERS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=harness.RESULTS / "private_accuracy.json")
    given_options = parser.parse_args()
    if not given_options.peers.exists():
        print("no jax_privacy: make peers")
        return 0
    given = settings(given_options.seeds)
    rows = {}
    for name, (accuracy, seconds) in (
        ("gradkin", ours(given)),
        ("jax_privacy", theirs(given, given_options.peers)),
    ):
        rows[name] = {
            "test_accuracy": [round(a, 4) for a in accuracy],
            "milliseconds_per_step": [round(1e3 * s, 3) for s in seconds],
        }
        mean, sd = np.mean(accuracy), np.std(accuracy, ddof=1) if len(accuracy) > 1 else 0.0
        ms = 1e3 * np.median(seconds)
        print(f"{name:12} accuracy {100 * mean:.2f} +- {100 * sd:.2f}%, {ms:.2f} ms per step")
    document = {
        "benchmark": "private_accuracy",
        "epsilon": EPSILON,
        "delta": DELTA,
        "noise_multiplier": round(given["noise_multiplier"], 5),
        "busy_share_after": round(harness.busy_share(), 2),
        "libraries": rows,
    }
    given_options.out.parent.mkdir(exist_ok=True)
    given_options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
