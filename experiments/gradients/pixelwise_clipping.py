"""Pixel-wise gradient clipping for score distillation (Pan et al. 2024, PGC, arXiv:2310.12474).

Claim: the encoder of a latent diffusion model was never trained to have a well-behaved backward
pass; the pixel gradients it returns have isolated huge entries that swamp texture. Rescaling each
pixel's gradient to a bound, which keeps its direction, makes images optimised through the encoder
cleaner than no clipping, clamping values or clipping the global norm. Here in small, without any
pre-trained model: digits in colour, a convolutional autoencoder with a nearly absent KL term (1e-6,
to leave it as ill-conditioned as it likes), a class-conditional denoiser in its latent space, and
an image (or a coordinate network) optimised by score distillation through the frozen encoder.

    python -m experiments run gradients/pixelwise_clipping --preset quick --seeds 3   # 1 minute

Each method's bound is the best of as many values by the classifier's probability of the class on
another set of images. What was seen: the small encoder is well conditioned (the largest pixel
gradient is 6 times the median, not 20), every method draws a digit that the classifier is sure of,
and there is nothing left for clipping to improve. With the latents unbounded and a sixth of the
training, no method drew a digit, and the differences were noise.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import figures
from experiments.runner import Claim
from gradkin import data as datasets
from gradkin import gradients, optim

PAPERS = ("pixelwise-grad-clip",)
DATA = ("digits",)
VMAP_SEEDS = True
METHODS = ("none", "value clamp", "global norm", "per pixel")
FIELDS = ("image", "network")
# Multiples of the first step's median pixel gradient (of its global norm for "global norm").
BOUNDS = (0.3, 1.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "digits"
    side: int = 8
    channels: int = 8
    latent: int = 4
    model_steps: int = 1500
    batch: int = 32
    distill_steps: int = 200
    guidance: float = 5.0
    image_rate: float = 0.03
    classes: tuple[int, ...] = (3, 7)


PRESETS = {
    "smoke": Config(channels=4, model_steps=2, batch=8, distill_steps=2, classes=(0,)),
    "quick": Config(),
    "paper": Config(
        side=256, channels=64, model_steps=50_000, distill_steps=10_000, guidance=100.0
    ),
}


def load(config: Config) -> dict[str, Any]:
    train = datasets.load(config.data, "train")
    return {"x": datasets.images(train), "y": np.asarray(train["label"], np.int32)}


def data_spec(config: Config) -> dict[str, Any]:
    return {
        "x": jax.ShapeDtypeStruct((1438, 8, 8, 1), np.float32),
        "y": jax.ShapeDtypeStruct((1438,), np.int32),
    }


def colour(key, x, config):
    """Upsampled digits in a random tint on black."""
    x = jnp.repeat(jnp.repeat(x, config.side // 8, axis=1), config.side // 8, axis=2)
    tint = jax.random.uniform(key, (x.shape[0], 1, 1, 3), minval=0.3, maxval=1.0)
    return x * tint


def conv(p, x, stride=1):
    out = jax.lax.conv_general_dilated(
        x, p["w"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + p["b"]


def weights(key, *shape):
    fan = np.prod(shape[:-1])
    return {
        "w": jax.random.normal(key, shape) * np.float32(np.sqrt(2 / fan)),
        "b": jnp.zeros((1,) * (len(shape) - 1) + shape[-1:]),
    }


def init(key, config):
    c, z = config.channels, config.latent
    k = iter(jax.random.split(key, 12))
    flat = (config.side // 4) ** 2 * c
    return {
        "encoder": [weights(next(k), 3, 3, 3, c), weights(next(k), 3, 3, c, c),
                    weights(next(k), 3, 3, c, 2 * z)],
        "decoder": [weights(next(k), 3, 3, z, c), weights(next(k), 3, 3, c, 12)],
        "denoiser": [weights(next(k), 3, 3, z + 12, 2 * c), weights(next(k), 3, 3, 2 * c, 2 * c),
                     weights(next(k), 3, 3, 2 * c, z)],
        "classifier": [weights(next(k), 3, 3, 3, c), weights(next(k), 3, 3, c, c),
                       weights(next(k), flat, 10)],
    }  # fmt: skip


def encode(p, x):
    """Latent mean and log variance, at half the resolution."""
    h = jax.nn.silu(conv(p[0], x))
    h = jax.nn.silu(conv(p[1], h, 2))
    mean, log_var = jnp.split(conv(p[2], h), 2, axis=-1)
    # Of the scale of the noise it will be mixed with.
    return 2 * jnp.tanh(mean), log_var


def decode(p, z):
    h = jax.nn.silu(conv(p[0], z))
    h = conv(p[1], h)
    b, n, m, _ = h.shape
    h = h.reshape(b, n, m, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    return jax.nn.sigmoid(h.reshape(b, 2 * n, 2 * m, 3))


def denoise(p, z, level, label):
    """The noise in ``z``; label 10 is no label."""
    b, n, m, _ = z.shape
    known = jnp.concatenate([jax.nn.one_hot(label, 11), level[:, None]], axis=1)
    h = jnp.concatenate([z, jnp.broadcast_to(known[:, None, None], (b, n, m, 12))], axis=-1)
    h = jax.nn.silu(conv(p[0], h))
    return conv(p[2], h + jax.nn.silu(conv(p[1], h)))


def classify(p, x):
    h = jax.nn.relu(conv(p[0], x, 2))
    h = jax.nn.relu(conv(p[1], h, 2))
    return h.reshape(h.shape[0], -1) @ p[2]["w"] + p[2]["b"]


def model_loss(p, key, x, label):
    """Everything at once; the denoiser does not train the encoder."""
    noise, draw, level, drop = jax.random.split(key, 4)
    mean, log_var = encode(p["encoder"], x)
    z = mean + jnp.exp(0.5 * log_var) * jax.random.normal(draw, mean.shape)
    kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_var) - log_var - 1)
    rebuilt = jnp.mean(jnp.square(decode(p["decoder"], z) - x))
    frozen = jax.lax.stop_gradient(mean)
    t = jax.random.uniform(level, (x.shape[0],), minval=0.02, maxval=0.98)
    eps = jax.random.normal(noise, frozen.shape)
    noisy = mix(frozen, eps, t)
    shown = jnp.where(jax.random.bernoulli(drop, 0.15, label.shape), 10, label)
    guess = jnp.mean(jnp.square(denoise(p["denoiser"], noisy, t, shown) - eps))
    logits = classify(p["classifier"], x)
    right = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))
    return 10 * rebuilt + 1e-6 * kl + guess + right


def mix(z, eps, t):
    t = t[:, None, None, None]
    return jnp.sqrt(1 - t) * z + jnp.sqrt(t) * eps


def train_models(config, keys, data, loop):
    optimizer = optax.adam(3e-3)

    def start(key):
        key, use = jax.random.split(key)
        params = init(use, config)
        return params, optimizer.init(params), key

    def step(state, data):
        params, opt_state, key = state
        key, draw, tint, use = jax.random.split(key, 4)
        rows = jax.random.randint(draw, (config.batch,), 0, data["x"].shape[0])
        x = colour(tint, data["x"][rows], config)
        grads = jax.grad(model_loss)(params, use, x, data["y"][rows])
        params, opt_state = optim.update(optimizer, grads, opt_state, params)
        return params, opt_state, key

    steps = config.model_steps
    state, _ = loop(step, jax.vmap(start)(keys), steps, every=steps, data=data, name="models")
    return state[0]


def field_init(key, field, config):
    if field == "image":
        return 0.5 + 0.05 * jax.random.normal(key, (config.side, config.side, 3))
    a, b = jax.random.split(key)
    return [weights(a, 34, 32), weights(b, 32, 3)]


def render(params, field, config):
    if field == "image":
        return params
    line = jnp.linspace(-1, 1, config.side)
    grid = jnp.stack(jnp.meshgrid(line, line), axis=-1)
    waves = jnp.concatenate([grid * np.float32(np.pi * 2**k / 2) for k in range(8)], axis=-1)
    h = jnp.concatenate([grid, jnp.sin(waves), jnp.cos(waves)], axis=-1)
    h = jnp.reshape(h, (-1, h.shape[-1]))
    h = jnp.sin(h @ params[0]["w"] + params[0]["b"])
    h = jax.nn.sigmoid(h @ params[1]["w"] + params[1]["b"])
    return jnp.reshape(h, (config.side, config.side, 3))


def pixel_gradient(p, key, image, label, config):
    """Score distillation pulled back to the pixels: noise, two guesses, the encoder's backward."""
    noise, level = jax.random.split(key)
    z, pull = jax.vjp(lambda x: encode(p["encoder"], x[None])[0], image)
    t = jax.random.uniform(level, (1,), minval=0.02, maxval=0.98)
    eps = jax.random.normal(noise, z.shape)
    noisy = mix(z, eps, t)
    guess = lambda y: denoise(p["denoiser"], noisy, t, jnp.full((1,), y))
    guided = guess(label) + config.guidance * (guess(label) - guess(10))
    weight = t[:, None, None, None]  # 1 - abar
    return pull(weight * (guided - eps))[0]


def suppress(method, grad, bound):
    """What the method of this number does to the pixel gradient."""
    norm = jnp.linalg.norm(grad)
    # As it is used: a hook on the rendered image that the backward pass goes through.
    hook = lambda x: jnp.vdot(grad, gradients.clip_cotangent(x, bound))
    ways = (
        grad,
        jnp.clip(grad, -bound, bound),
        grad * jnp.minimum(1, bound / norm),
        jax.grad(hook)(jnp.zeros_like(grad)),
    )
    return jnp.stack(ways)[method]


def distill(config, keys, models, loop, *, field):
    """Images ``[S, methods, bounds, classes, side, side, 3]``, and how heavy the tails were."""
    # Plain SGD on the image: Adam would undo any rescaling of a coordinate.
    optimizer = optax.sgd(1.0) if field == "image" else optax.adam(1e-2)
    shape = (len(METHODS), len(BOUNDS))
    settings = [(m, b) for m in range(shape[0]) for b in BOUNDS]
    methods, factors = (jnp.asarray(column) for column in zip(*settings))

    def start(key, p):
        def one(key, method, factor, label):
            begin, probe, key = jax.random.split(key, 3)
            params = field_init(begin, field, config)
            grad = jax.vmap(
                lambda k: pixel_gradient(p, k, render(params, field, config), label, config)
            )(jax.random.split(probe, 8))
            unit = jnp.median(jnp.max(jnp.abs(grad), axis=-1))
            norm = jnp.median(jnp.sqrt(jnp.sum(jnp.square(grad), axis=(1, 2, 3))))
            scale = jnp.where(method == METHODS.index("global norm"), norm, unit)
            heavy = jnp.max(jnp.max(jnp.abs(grad), axis=-1)) / unit
            # One unit of step for all methods: a median pixel moves by the image rate.
            rate = config.image_rate / unit if field == "image" else jnp.ones(())
            suppressed = method, factor * scale
            return params, optimizer.init(params), key, suppressed, label, rate, heavy

        per_class = jax.vmap(one, (0, None, None, 0))
        use = jax.random.split(key, len(config.classes))
        labels = jnp.asarray(config.classes)
        states = jax.vmap(per_class, (None, 0, 0, None))(use, methods, factors, labels)
        return states, p

    def advance(state, p):
        params, opt_state, key, (method, bound), label, rate, heavy = state
        key, use = jax.random.split(key)
        image, pull = jax.vjp(lambda params: render(params, field, config), params)
        grad = suppress(method, pixel_gradient(p, use, image, label, config), bound)
        (grads,) = pull(rate * grad)
        params, opt_state = optim.update(optimizer, grads, opt_state, params)
        if field == "image":
            params = jnp.clip(params, 0.0, 1.0)
        return params, opt_state, key, (method, bound), label, rate, heavy

    def step(state, data):
        states, p = state
        return jax.vmap(jax.vmap(advance, (0, None)), (0, None))(states, p), p

    steps = config.distill_steps
    state, _ = loop(step, jax.vmap(start)(keys, models), steps, every=steps, name=field)
    draw = jax.vmap(jax.vmap(jax.vmap(lambda q: render(q, field, config))))
    split = lambda v: v.reshape((v.shape[0], *shape, *v.shape[2:]))
    return split(draw(state[0][0])), split(state[0][-1])


def scores(config, models, images):
    """Probability of the class by the separate classifier and total variation of the border."""
    labels = jnp.asarray(config.classes)

    def one(p, image, label):
        right = jax.nn.softmax(classify(p["classifier"], image[None])[0])[label]
        edge = jnp.concatenate([image[:2], image[-2:]])
        variation = jnp.mean(jnp.abs(jnp.diff(edge, axis=1)))
        return right, variation

    over = jax.vmap(jax.vmap(one, (None, 0, 0)), (None, 0, None))
    over = jax.vmap(over, (None, 0, None))
    return jax.vmap(lambda p, x: over(p, x, labels))(models, images)


def run(config: Config, key, data, loop) -> dict[str, Any]:
    use = jax.vmap(lambda k: jax.random.split(k, 4))(key)
    models = train_models(config, use[:, 0], data, loop)
    # Two sets of images per seed: the first chooses the bounds used on the second.
    keys = use[:, 1:3].reshape(-1)
    models = jax.tree.map(lambda p: jnp.repeat(p, 2, axis=0), models)
    metrics = {}
    for field in FIELDS:
        images, heavy = distill(config, keys, models, loop, field=field)
        right, variation = scores(config, models, images)
        split = lambda v: v.reshape((-1, 2, *v.shape[1:]))
        images, heavy, right, variation = map(split, (images, heavy, right, variation))
        if field == "image":
            metrics["max over median"] = jnp.median(heavy[:, 1, 0, 0], axis=-1)
        for k, method in enumerate(METHODS):
            best = jnp.argmax(jnp.mean(right[:, 0, k], axis=-1), axis=-1)
            pick = lambda v, k=k, best=best: jax.vmap(lambda v, b: v[1, k, b])(v, best)
            name = f"{field}, {method}"
            metrics[f"{name}, probability"] = jnp.mean(pick(right), axis=-1)
            metrics[f"{name}, variation"] = jnp.mean(pick(variation), axis=-1)
            stride = max(1, config.side // 32)
            metrics[f"{name}, image"] = pick(images)[:, 0, ::stride, ::stride]
    return metrics


def plot(metrics):
    figure, axes = figures.panels(2, 5, width=1.9, height=2.0)
    for row, field in zip(axes, FIELDS):
        for ax, method in zip(row, METHODS):
            ax.imshow(np.clip(metrics[f"{field}, {method}, image"][0], 0, 1))
            ax.set_title(method if field == "image" else "")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
        row[0].set_ylabel({"image": "free image", "network": "coordinate network"}[field])
        for k, method in enumerate(METHODS):
            values = metrics[f"{field}, {method}, probability"]
            row[4].scatter(np.full(len(values), k), values, s=9, color=figures.COLOURS[k])
        row[4].set(title="probability of the class" if field == "image" else "", ylim=(-0.05, 1.05))
        row[4].set_xticks(range(4), ["none", "value", "global", "pixel"])
    return figure


def better(field, what, sign, others):
    """Per seed: by how much clipping per pixel beats the best of the others."""
    return lambda m: np.min(
        [sign * (m[f"{field}, per pixel, {what}"] - m[f"{field}, {k}, {what}"]) for k in others],
        axis=0,
    )


OTHERS = METHODS[1:3]
CLAIMS = (
    Claim(
        text="Pixel gradients behind the encoder are heavy-tailed.",
        paper="pixelwise-grad-clip",
        reported="isolated huge pixel gradients (qualitative)",
        measure=lambda m: m["max over median"],
        holds=lambda ratio: ratio >= 20,
        rule="median",
        threshold="largest / median pixel gradient >= 20",
        verdict="not reproduced",
    ),
    Claim(
        text="A free image optimised with clipping per pixel is recognised better than without.",
        paper="pixelwise-grad-clip",
        reported="clearly better images (qualitative, user study)",
        measure=better("image", "probability", 1, ("none",)),
        holds=lambda difference: difference > 0,
        rule="mean",
        threshold="difference in the class's probability > 0",
        verdict="not reproduced",
    ),
    Claim(
        text="It is recognised better than with the clamp of values and with the global norm.",
        paper="pixelwise-grad-clip",
        reported="other ways to suppress gradients are worse (qualitative)",
        measure=better("image", "probability", 1, OTHERS),
        holds=lambda difference: difference > 0,
        rule="mean",
        threshold="least difference in the class's probability > 0",
        verdict="not reproduced",
    ),
    Claim(
        text="Through a coordinate network, clipping per pixel leaves less noise in the background "
        "than no clipping.",
        paper="pixelwise-grad-clip",
        reported="less noise (qualitative)",
        measure=better("network", "variation", -1, ("none",)),
        holds=lambda difference: difference > 0,
        rule="mean",
        threshold="drop of the border's total variation > 0",
        verdict="not reproduced",
    ),
)
