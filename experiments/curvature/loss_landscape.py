"""Loss landscapes on random and Hessian axes, and what a Hessian's signs say of generalization.

Nikita Gabdullin, "Investigating generalization capabilities of neural networks by means of loss
landscapes and Hessian analysis", 2024, arXiv:2412.10146. The normalization of directions is from
Hao Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, arXiv:1712.09913.

Claim: the spectrum of a trained network's Hessian is nearly all positive; two criteria, r_e =
|lambda_min / lambda_max| and K, a ratio of the negative to the positive part of the spectral
density, say how nearly. On other data they grow as accuracy falls, so one batch tells how well a
network generalizes. Rescaled weights before a normalization layer change slices along plain axes,
not along filter-normalized ones.

    python -m experiments run curvature/loss_landscape                       # 1 to 2 minutes
    python -m experiments run curvature/loss_landscape --data fashion_mnist  # 1 to 2 minutes
    python -m experiments run curvature/loss_landscape --preset paper        # GPU; not run yet

In place of ImageNet and other sets of photographs: a network trained on 512 small pictures meets
512 held-out ones that are rotated, noisy or of low contrast. The criteria need labels; so does the
plain loss of the same batch, which stands beside them and follows accuracy more closely. Hessian
axes are no cure for rescaling: the eigenvectors change with it, and so do slices along them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkin
from experiments import figures
from experiments.curvature import networks, pictures, ranks, surfaces
from experiments.curvature.networks import loss, mean_loss, statistics_of
from experiments.runner import Claim
from gradkin import curvature, optim
from gradkin import data as datasets

PAPERS = ("loss-landscape-hessian", "li:18")
DATA = ("digits", "mnist", "fashion_mnist")
ANGLES = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0)
NOISES = (0.1, 0.2, 0.3, 0.4)  # standard deviations; pixels are in [0, 1]
CONTRASTS = (0.15, 0.25, 0.35, 0.5)
# The first version is the data as they are; it belongs to each family.
FAMILIES = {
    "rotation": np.arange(7),
    "noise": np.array([0, 7, 8, 9, 10]),
    "contrast": np.array([0, 11, 12, 13, 14]),
    "all": np.arange(15),
}
SYMBOLS = {"extreme": "r_e", "weighted": "K", "loss": "loss"}
AXES = ("random", "Hessian", "Adam")
SLICES = ("plain", "filter-normalized", "Hessian", "Hessian, filter-normalized")
RESCALE = 10.0


@dataclasses.dataclass(frozen=True)
class Config:
    """``side``: pictures are averaged to at most so many pixels. ``exact``: all eigenvalues too."""

    data: str = "digits"
    side: int = 8
    hidden: int = 32
    examples: int = 512  # to train on, and as many others
    train_steps: int = 300
    learning_rate: float = 3e-3
    evaluations: int = 6  # of the criteria, in training
    num_matvecs: int = 60
    num_probes: int = 3
    exact: bool = True
    points: int = 25  # along a side of a landscape; odd
    reach: float = 1.0  # of a landscape, in lengths of its axes


PRESETS = {
    "smoke": Config(
        side=4, hidden=4, examples=24, train_steps=4, evaluations=2, num_matvecs=5, points=3
    ),
    "quick": Config(),
    "paper": Config(
        data="mnist", side=28, hidden=256, examples=10_000, train_steps=3000, exact=False, points=41
    ),
}


def load(config):
    """Pictures as vectors in [0, 1], their labels, and the matrices that rotate them."""
    split = datasets.load(config.data, "all" if config.data == "digits" else "train")
    side = pictures.side_of(config.data, config.side)
    return {
        "x": pictures.flattened(split, config.side),
        "y": split["label"],
        "rotations": pictures.rotations(side, ANGLES),
    }


def data_spec(config):
    n = 1797 if config.data == "digits" else 60_000
    d = pictures.side_of(config.data, config.side) ** 2
    return {
        "x": jax.ShapeDtypeStruct((n, d), np.float32),
        "y": jax.ShapeDtypeStruct((n,), np.int32),
        "rotations": jax.ShapeDtypeStruct((len(ANGLES), d, d), np.float32),
    }


def criteria(config, key, params, batch):
    """Accuracy, loss and both criteria on one batch."""
    H = gradkin.hessian(loss)(params, batch)
    options = {"num_matvecs": config.num_matvecs, "num_probes": config.num_probes, "grid": 2}
    found = curvature.hessian_criteria(H.spectral_density(key, **options))
    return {
        "accuracy": networks.accuracy(params, batch),
        "loss": mean_loss(params, batch),
        "extreme": found.extreme_ratio.value,
        "weighted": found.weighted_ratio.value,
    }


def train(config, key, batch, loop, normed):
    """Adam on the whole batch; the state, its start and, of the plain network, the criteria."""
    optimizer = optax.adam(config.learning_rate)
    params = networks.init(key, (batch[0].shape[1], config.hidden, 10), normed=normed)

    def objective(params, batch):
        return mean_loss(params, batch, statistics_of(params, batch[0]) if normed else None)

    def step(state, batch):
        params, opt_state = state
        return optim.update(optimizer, jax.grad(objective)(params, batch), opt_state, params)

    def evaluate(state, batch):
        return {} if normed else criteria(config, key, state[0], batch)

    start = params, optimizer.init(params)
    every = config.train_steps // config.evaluations
    options = {"every": every, "evaluate": evaluate, "data": batch}
    state, history = loop(step, start, config.train_steps, **options)
    return state, params, history


def distance(a, a_weights, b, b_weights):
    """Wasserstein-1 distance of two weighted sets of numbers."""
    points = jnp.concatenate([a, b])
    order = jnp.argsort(points)
    excess = jnp.cumsum(jnp.concatenate([a_weights, -b_weights])[order])
    return jnp.sum(jnp.abs(excess[:-1]) * jnp.diff(points[order]))


def spectrum(config, key, params, batch):
    """Density of eigenvalues by quadrature and, where they fit, from all of them."""
    H = gradkin.hessian(loss)(params, batch)
    options = {"num_matvecs": config.num_matvecs, "num_probes": config.num_probes, "grid": 200}
    density = H.spectral_density(key, **options)
    found = {"grid": density.grid, "density": density.density}
    if not config.exact:
        return found | {"exact": jnp.nan * density.density, "distance": jnp.nan * density.size}
    values = jnp.linalg.eigvalsh(H.materialize())
    equal = jnp.full_like(values, 1 / len(values))
    nodes, weights = density.nodes.ravel(), density.weights.ravel() / config.num_probes
    # As wide as `spectral_density` draws a node by default.
    narrow = 2 / ((config.num_matvecs - 1) * np.sqrt(8 * np.log(3)))
    width = (density.grid[-1] - density.grid[0]) * np.float32(1 / (2 / narrow + 6))
    bells = jnp.exp(-0.5 * jnp.square((density.grid[:, None] - values[None]) / width))
    return found | {
        "exact": jnp.mean(bells, axis=1) / (width * np.float32(np.sqrt(2 * np.pi))),
        "distance": distance(nodes, weights, values, equal) / (values[-1] - values[0]),
    }


def shifted(config, key, params, x, y, rotations):
    """Criteria on the data as they are, rotated, noisy and of low contrast: ``[15]``."""
    draw, probes = jax.random.split(key)
    turned = jnp.einsum("nd,vdf->vnf", x, rotations)
    noise = jax.random.normal(draw, x.shape)
    noisy = jnp.stack([x + s * noise for s in NOISES])
    versions = jnp.concatenate([turned, noisy, jnp.stack([c * x for c in CONTRASTS])])
    return jax.lax.map(lambda x: criteria(config, probes, params, (x, y)), versions)


def landscapes(config, key, state, batch):
    """The loss on planes through the trained network: ``[3, A, A]``."""
    keys = jax.random.split(key, 3)
    params, opt_state = state
    H = gradkin.hessian(loss)(params, batch)
    planes = {
        "random": tuple(curvature.random_direction(k, params) for k in keys[:2]),
        "Hessian": curvature.hessian_directions(keys[2], H),
        "Adam": curvature.adam_directions(opt_state),
    }
    steps = jnp.linspace(-config.reach, config.reach, config.points)

    def surface(name):
        normed = lambda d: d if name == "Hessian" else curvature.normalize_direction(d, params)
        axes = normed(planes[name][0]), normed(planes[name][1])
        fun = lambda params: mean_loss(params, batch)
        return curvature.loss_surface(fun, params, axes, alphas=steps, betas=steps)

    return jnp.stack([surface(name) for name in AXES])


def rescaled_slices(config, key, params, batch):
    """Losses along four kinds of axes, before and after rescaling a normed layer: ``[4, 2, A]``."""
    draw, start = jax.random.split(key)
    random = curvature.random_direction(draw, params)
    random = curvature.normalize_direction(random, params, mode="model")
    scaled = jax.tree.map(lambda w: w, params)
    scaled["layer0"]["kernel"] = RESCALE * params["layer0"]["kernel"]
    length = jnp.sqrt(sum(jnp.sum(w**2) for w in jax.tree.leaves(params)))
    steps = jnp.linspace(-config.reach, config.reach, config.points)

    def curves(params):
        statistics = statistics_of(params, batch[0])
        H = gradkin.hessian(loss, in_axes=(None, 0, None))(params, batch, statistics)
        vector, _ = curvature.hessian_directions(start, H)
        along = curvature.normalize_direction(vector, params)
        sign = jnp.sign(sum(jnp.sum(v) for v in jax.tree.leaves(along)))  # eigenvectors have none
        axes = (
            random,
            curvature.normalize_direction(random, params),
            jax.tree.map(lambda v: sign * length * v, vector),
            jax.tree.map(lambda v: sign * v, along),
        )
        fun = lambda params: mean_loss(params, batch, statistics)
        return jnp.stack([curvature.loss_curve(fun, params, d, alphas=steps) for d in axes])

    return jnp.stack([curves(params), curves(scaled)], axis=1)


def run(config, key, data, loop):
    k = jax.random.split(key, 7)
    n = config.examples
    order = jax.random.permutation(k[0], len(data["y"]))[: 2 * n]
    x, y = data["x"][order], data["y"][order]
    batch = x[:n], y[:n]
    plain, first, history = train(config, k[1], batch, loop, normed=False)
    (normed, _), _, _ = train(config, k[2], batch, loop, normed=True)

    compiled = functools.partial(jax.jit, static_argnums=0)
    others = compiled(shifted)(config, k[3], plain[0], x[n:], y[n:], data["rotations"])
    spectra = [compiled(spectrum)(config, k[4], params, batch) for params in (first, plain[0])]
    spectra = jax.tree.map(lambda *both: jnp.stack(both), *spectra)
    return {
        **{f"train_{name}": value for name, value in history.items()},
        **{f"shift_{name}": value for name, value in others.items()},
        **{f"spectrum_{name}": value for name, value in spectra.items()},
        "surfaces": compiled(landscapes)(config, k[5], plain, batch),
        "slices": compiled(rescaled_slices)(config, k[6], normed, batch),
    }


def correlation(metrics, criterion, family):
    """Rank correlation of accuracy and a criterion over a family of versions, per seed."""
    inside = FAMILIES[family]
    return ranks.spearman(*(metrics[f"shift_{x}"][:, inside] for x in ("accuracy", criterion)))


def change(metrics, kind):
    """Largest difference that rescaling makes to a slice, over its range."""
    before, after = (metrics["slices"][:, SLICES.index(kind), i] for i in range(2))
    return np.abs(after - before).max(-1) / np.ptp(before, axis=-1)


def plot(metrics):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.6, 8.4), layout="constrained")
    panels = figure.subplot_mosaic(
        [
            ["random", "Hessian", "Adam", "solid random"],
            ["spectrum", "training", "slices", "solid Hessian"],
            ["extreme", "weighted", "loss", "change"],
        ],
        per_subplot_kw={("solid random", "solid Hessian"): {"projection": "3d"}},
    )
    planes = metrics["surfaces"][0]
    steps = np.linspace(-1, 1, planes.shape[-1])
    for i, name in enumerate(AXES):
        shown = steps, planes[i], *surfaces.limits(planes)
        surfaces.contour(panels[name], *shown)
        title = f"{name} axes, {'unit vectors' if name == 'Hessian' else 'by filter'}"
        panels[name].set(xlabel="first axis", ylabel="second axis", title=title)
        if f"solid {name}" in panels:
            surfaces.solid(panels[f"solid {name}"], *shown)
            panels[f"solid {name}"].set_title(f"log10 loss, {name} axes")

    for i, name in enumerate(("at the start", "trained")):
        x = metrics["spectrum_grid"][0, i]
        panels["spectrum"].plot(x, metrics["spectrum_density"][0, i], label=name)
        panels["spectrum"].plot(x, metrics["spectrum_exact"][0, i], ":", color="#2b3138", lw=1)
    look = {"yscale": "log", "ylim": (1e-5, None), "xlabel": "eigenvalue", "ylabel": "density"}
    panels["spectrum"].set(title="Spectrum; dotted: all eigenvalues", **look)
    times = np.linspace(0, 1, metrics["train_loss"].shape[1])
    for name, symbol in SYMBOLS.items():
        figures.band(panels["training"], times, metrics[f"train_{name}"], label=symbol)
        for kind in ("rotation", "noise", "contrast"):
            x, y = (metrics[f"shift_{k}"][:, FAMILIES[kind]].ravel() for k in ("accuracy", name))
            rho = correlation(metrics, name, kind).mean()
            panels[name].plot(x, y, ".", label=f"{kind} {rho:.2f}")
        title = f"Shifted data: rank correlation {correlation(metrics, name, 'all').mean():.2f}"
        panels[name].set(xlabel="accuracy", ylabel=symbol, yscale="log", title=title)
        panels[name].legend()
    panels["training"].set(yscale="log", xlabel="share of training", title="On the training batch")

    for i, kind in enumerate(SLICES[:3]):
        for j, line in enumerate(("-", ":")):
            values = metrics["slices"][0, i, j]
            label = None if j else kind
            panels["slices"].plot(steps, values, line, color=figures.COLOURS[i], label=label)
    panels["slices"].set(yscale="log", xlabel="step", ylabel="loss", ylim=(None, 1e5))
    panels["slices"].set_title("Slices; dotted: layer rescaled")
    for name in ("spectrum", "training", "slices"):
        panels[name].legend()
    for i, kind in enumerate(SLICES):
        values = np.maximum(change(metrics, kind), 1e-8)
        panels["change"].barh(i, values.mean(), color=figures.COLOURS[i % 4], alpha=0.75)
        panels["change"].plot(values, np.full(len(values), i), ".", color="#2b3138", ms=4)
    panels["change"].set_yticks(range(len(SLICES)), [s.replace(", ", ",\n") for s in SLICES])
    panels["change"].set(xscale="log", title="Change of a slice by rescaling")
    panels["change"].invert_yaxis()
    return figure


def falls(name, factor, seen):
    return Claim(
        text=f"{SYMBOLS[name]} falls in training",
        paper="loss-landscape-hessian",
        reported="qualitative",
        measure=lambda m: m[f"train_{name}"][:, 0] / np.maximum(m[f"train_{name}"][:, -1], 1e-9),
        holds=lambda ratio: ratio > factor,
        rule="median",
        threshold=f"start / end > {factor}",
        verdict=seen,
    )


def follows(name, family, seen):
    where = "over all shifts" if family == "all" else f"under {family}"
    return Claim(
        text=f"{SYMBOLS[name]} grows as accuracy falls {where}",
        paper="loss-landscape-hessian",
        reported="changes correlate (no number known)",
        measure=lambda m: correlation(m, name, family),
        holds=lambda rho: rho <= -0.7,
        rule="mean",
        threshold="rank correlation <= -0.7",
        verdict=seen,
    )


CLAIMS = (
    Claim(
        text="60 Lanczos products find the spectrum, at the start and trained",
        paper="loss-landscape-hessian",
        reported="100 products in use",
        measure=lambda m: m["spectrum_distance"].max(1),
        holds=lambda gap: gap < 0.01,
        rule="every",
        threshold="Wasserstein-1 distance to all eigenvalues < 1% of their range",
        verdict="reproduced",
    ),
    falls("extreme", 5, "reproduced"),
    falls("weighted", 2, "reproduced"),
    follows("extreme", "rotation", "reproduced"),
    follows("weighted", "rotation", "reproduced"),
    follows("extreme", "noise", "reproduced"),
    follows("weighted", "noise", "not reproduced"),
    follows("extreme", "all", "reproduced"),
    follows("weighted", "all", "reproduced"),
    Claim(
        text="over all shifts r_e follows accuracy more closely than the loss of the batch does",
        paper="loss-landscape-hessian",
        reported="not compared",
        measure=lambda m: correlation(m, "loss", "all") - correlation(m, "extreme", "all"),
        holds=lambda gain: gain > 0,
        rule="mean",
        threshold="rank correlation of the loss - of r_e > 0",
        verdict="not reproduced",
    ),
    Claim(
        text="a filter-normalized slice does not see the scale of a normed layer",
        paper="li:18",
        reported="invariant",
        measure=lambda m: change(m, "filter-normalized"),
        holds=lambda moved: moved <= 0.01,
        rule="every",
        threshold="change <= 1% of the slice's range",
        verdict="reproduced",
    ),
    Claim(
        text="a plain slice does",
        paper="li:18",
        reported="qualitative",
        measure=lambda m: change(m, "plain"),
        holds=lambda moved: moved >= 0.1,
        rule="every",
        threshold="change >= 10% of the slice's range",
        verdict="reproduced",
    ),
)
