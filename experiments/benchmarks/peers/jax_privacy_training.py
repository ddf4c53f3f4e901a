"""DP-SGD by jax_privacy on batches, parameters and noise multiplier that are handed to it.

python -m experiments.benchmarks.peers.jax_privacy_training INPUT.npz OUTPUT.npz
"""

import sys
import time

import numpy as np


def main() -> None:
    import jax
    import jax.numpy as jnp
    from jax_privacy.clipping import clipped_grad
    from jax_privacy.noise_addition import gaussian_privatizer

    given = dict(np.load(sys.argv[1]))
    layers = int(given["layers"])

    def predict(params, x):
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    def loss(params, batch):
        x, y = batch
        return -jax.nn.log_softmax(predict(params, x))[y]

    expected = float(given["expected_size"])
    clipped = clipped_grad(
        loss, l2_clip_norm=float(given["clip_norm"]), keep_batch_dim=False, normalize_by=1.0
    )
    std = float(given["noise_multiplier"]) * float(given["clip_norm"])
    accuracies, seconds = [], []
    for seed in range(len(given["rows"])):
        params = [{k: given[f"{k}{i}"][seed] for k in "wb"} for i in range(layers)]
        noise = gaussian_privatizer(stddev=std, prng_key=jax.random.key(1000 + seed))

        @jax.jit
        def step(params, noise_state, rows, mask, noise=noise):
            batch = jnp.asarray(given["x"])[rows], jnp.asarray(given["y"])[rows]
            total = clipped(params, batch, is_padding_example=~mask)
            total, noise_state = noise.update(total, noise_state)
            rate = given["rate"] / expected
            return jax.tree.map(lambda p, g: p - rate * g, params, total), noise_state

        state = noise.init(params)
        step(params, state, given["rows"][seed, 0], given["mask"][seed, 0])  # compile
        start = time.perf_counter()
        for rows, mask in zip(given["rows"][seed], given["mask"][seed]):
            params, state = step(params, state, rows, mask)
        jax.block_until_ready(params)
        seconds.append((time.perf_counter() - start) / len(given["rows"][seed]))
        logits = np.asarray(predict(params, given["x_test"]))
        accuracies.append(np.mean(np.argmax(logits, axis=1) == given["y_test"]))
    np.savez(sys.argv[2], accuracy=accuracies, seconds=seconds)


if __name__ == "__main__":
    main()
