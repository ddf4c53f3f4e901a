"""Near neighbours and a sample: kernel density where few points make up the sum.

Matti Karppa, Martin Aumueller and Rasmus Pagh, "DEANN: Speeding up Kernel-Density Estimation using
Approximate Nearest Neighbor Search", AISTATS 2022, arXiv:2107.02736.

Claim: a kernel density is estimated without bias from the points that an approximate index finds
near the query and a random sample of the rest. To a mean relative error of 0.1, a sample alone is
cheapest where the density is high (the mean kernel value over the points is 1e-2), and near
neighbours with a sample are cheaper than a sample alone and than all points where it is low (1e-5).

The protocol is that of the authors' code: a Gaussian kernel; for each density a bandwidth at which
the median over 500 validation queries has that value; parameters chosen on the validation queries,
the cheapest whose mean relative error (to at least 1e-16) is at most 0.1; results on 500 test
queries. What differs: the cost is counted in distances per query, not in milliseconds, so that it
does not depend on the machine (an index of c lists of L points, p of them read, costs c + p L; a
sample of s costs s; what does not reach the error costs all n points); sizes are powers of two; the
index is this library's.

Two claims fail, on the mixture and on Shuttle alike (the authors' own set, as ADBench has it).
Near neighbours help at a density of 1e-2 too: densities differ so much from query to query that the
sparse ones rule the mean relative error, whatever the median is. And the last claim, the library's
own: at first the standard error was that of the sample's mean, and intervals covered .90, .85, .64
and .27 at the four densities (Shuttle .92, .88, .25, .01), since a sample that holds none of the
few points that matter does not vary. A term for one more point at the edge of the neighbours was
added then, the threshold kept: .97, .89, .74 and .53 (Shuttle .95, .93, .85, .34). Part of
what is left is neighbours that the index misses: with 50 exact ones the mixture's intervals covered
at least .97, .97, .91 and .66.

    python -m experiments run kernels/density                               # 3 minutes, two cores
    python -m experiments run kernels/density --data FOLDER/32_shuttle.npz  # the same
    python -m experiments run kernels/density --preset paper                # for a GPU; not run yet
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import gradkin
from experiments import figures
from experiments.runner import Claim
from gradkin import data as datasets
from gradkin import kernels

PAPERS = ("karppa:22",)
DATA = ("mixture", "digits", "mnist", "fashion_mnist")


@dataclasses.dataclass(frozen=True)
class Config:
    """``settings``: near neighbours asked for and lists read. ``draws``: samples at each size."""

    data: str = "mixture"
    points: int = 50_000
    queries: int = 500  # for validation, and as many for the test
    features: int = 16  # of the mixture
    clusters: int = 100  # of the mixture
    densities: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    lists: int = 256
    settings: tuple[tuple[int, int], ...] = ((10, 1), (50, 4), (100, 16))
    sizes: tuple[int, ...] = tuple(2**i for i in range(4, 16))
    draws: int = 4
    bias_draws: int = 100
    error: float = 0.1


PRESETS = {
    "smoke": Config(
        points=600,
        queries=20,
        features=3,
        clusters=4,
        densities=(1e-1, 1e-2),
        lists=12,
        settings=((5, 2),),
        sizes=(8, 32),
        draws=2,
        bias_draws=4,
    ),
    "quick": Config(),
    # The authors search k in 10, ..., 500, 1 to 50 of 512 lists, and more sizes of samples.
    "paper": Config(
        data="mnist",
        points=59_000,
        lists=512,
        settings=((10, 1), (50, 5), (100, 10), (200, 50)),
        sizes=tuple(4**i for i in range(2, 8)),
    ),
}


def load(config):
    """Points, and queries that are not among them; a real set is split at random."""
    rng = np.random.default_rng(0)
    count = 2 * config.queries
    if config.data == "mixture":
        x = mixture(rng, config, config.points + count)
    else:
        split = datasets.load(config.data, "train")
        name = next(n for n in ("image", "features", "X") if n in split)
        x = split[name].reshape(len(split), -1).astype(np.float32)
        x = x[rng.permutation(len(x))]
    return {"queries": x[:count], "points": x[count : count + config.points]}


def mixture(rng, config, size):
    """Clusters of different sizes and widths, each near a plane of four dimensions."""
    d, c = config.features, config.clusters
    share = rng.dirichlet(np.ones(c))
    width = np.exp(rng.normal(0, 0.5, (c, 1, 1)))
    center, plane = 2 * rng.normal(size=(c, d)), width * rng.normal(size=(c, min(4, d), d))
    which = rng.choice(c, size, p=share)
    within = np.einsum("ij,ijk->ik", rng.normal(size=(size, plane.shape[1])), plane[which])
    return (center[which] + within + 0.2 * rng.normal(size=(size, d))).astype(np.float32)


def data_spec(config):
    features = {"mixture": config.features, "digits": 64}.get(config.data, 784)
    return {
        "queries": jax.ShapeDtypeStruct((2 * config.queries, features), np.float32),
        "points": jax.ShapeDtypeStruct((config.points, features), np.float32),
    }


@jax.jit
def exact(points, queries, bandwidths):
    """``[densities, queries]``, the log of the mean kernel value."""

    def one(h):
        K = gradkin.kernel_matrix(kernels.Gaussian(h), queries, points)
        return K.logsumexp(axis=1) - np.log(len(points))

    return jax.lax.map(one, bandwidths)


@jax.jit
def bandwidths_of(points, queries, densities):
    """Bandwidths at which the median density over the queries has the given values."""
    rule = jnp.mean(kernels.silverman_bandwidth(points))  # somewhere to begin
    ends = jnp.log(rule) + jnp.stack([jnp.full_like(densities, e) for e in (-7.0, 5.0)])

    def halve(ends, _):
        middle = jnp.mean(ends, axis=0)
        found = jnp.median(exact(points, queries, jnp.exp(middle)), axis=1)
        above = found > jnp.log(densities)
        return jnp.stack([jnp.where(above, ends[0], middle), jnp.where(above, middle, ends[1])]), 0

    ends, _ = jax.lax.scan(halve, ends, length=16)
    return jnp.exp(jnp.mean(ends, axis=0))


@functools.partial(jax.jit, static_argnames=("size", "draws"))
def errors(key, points, queries, bandwidths, truth, near, *, size, draws):
    """Mean relative error ``[densities, 2]`` (validation, test), test coverage ``[densities]``."""

    def at(pair):
        h, value = pair

        def one(key):
            given = key, kernels.Gaussian(h), points, queries
            if near is None:
                found = kernels.sampled_density(*given, size=size)
            else:
                found = kernels.neighbor_density(*given, neighbors=near, size=size)
            low, high = found.interval()
            covered = (low < value) & (value < high)
            return jnp.abs(found.mean_kernel / value - 1), covered.astype(jnp.float32)

        relative, covered = jax.lax.map(one, jax.random.split(key, draws))
        split = lambda a: a.mean(0).reshape(2, -1).mean(1)
        return split(relative), split(covered)[1]

    return jax.lax.map(at, (bandwidths, truth))


@functools.partial(jax.jit, static_argnames="draws")
def bias(key, points, queries, bandwidth, truth, near, *, draws):
    """Signed relative error ``[draws]`` of a small sample, averaged over the queries."""

    def one(key):
        kernel = kernels.Gaussian(bandwidth)
        found = kernels.neighbor_density(key, kernel, points, queries, neighbors=near, size=256)
        return jnp.mean(found.mean_kernel / truth - 1)

    return jax.lax.map(one, jax.random.split(key, draws))


def run(config, key, data, loop):
    """``loop`` is not needed: there is nothing to train."""
    points, n = data["points"], len(data["points"])
    order, build, draw, again = jax.random.split(key, 4)
    queries = jax.random.permutation(order, data["queries"])
    densities = jnp.asarray(config.densities, jnp.float32)
    bandwidths = bandwidths_of(points, queries[: config.queries], densities)
    truth = jnp.maximum(jnp.exp(exact(points, queries, bandwidths)), 1e-16)
    index = kernels.inverted_file(build, points, num_lists=config.lists)
    read = [config.lists + probes * index.lists.shape[1] for _, probes in config.settings]
    near = [index.nearest(queries, k=k, probes=probes) for k, probes in config.settings]
    sizes = [size for size in config.sizes if size < n]
    given = points, queries, bandwidths, truth
    table = [
        [
            errors(key, *given, found, size=size, draws=config.draws)
            for size, key in zip(sizes, jax.random.split(draw, len(sizes)))
        ]
        for found in (None, *near)
    ]
    error = jnp.stack([jnp.stack([e for e, _ in row], axis=1) for row in table])
    covered = jnp.stack([jnp.stack([c for _, c in row], axis=1) for row in table])
    cost = jnp.asarray([0, *read])[:, None] + jnp.asarray(sizes)[None]

    def cheapest(rows):
        """The cheapest setting that is good enough on validation, for each density."""
        good = error[rows, :, :, 0] <= config.error
        costs = jnp.broadcast_to(cost[rows, None], good.shape)
        costs = jnp.where(good, costs, n).swapaxes(0, 1).reshape(len(densities), -1)
        best = jnp.argmin(costs, axis=1)[:, None]
        of = lambda a: jnp.take_along_axis(
            a[rows].swapaxes(0, 1).reshape(len(densities), -1), best, axis=1
        )[:, 0]
        reached = good.swapaxes(0, 1).reshape(len(densities), -1).any(1)
        nan = jnp.full(len(densities), jnp.nan)
        return {
            "cost": jnp.minimum(costs.min(1), n).astype(jnp.float32),
            "error": jnp.where(reached, of(error[..., 1]), nan),
            "covered": jnp.where(reached, of(covered), nan),
        }

    # The poorest index and a small sample: whether the mean is right all the same.
    signed = bias(again, points, queries, bandwidths[1], truth[1], near[0], draws=config.bias_draws)
    alone, both = cheapest(slice(0, 1)), cheapest(slice(1, None))
    return {
        "density": densities,
        "size": jnp.asarray(sizes),
        "bandwidth": bandwidths,
        "test_error": error[..., 1],
        "setting_cost": jnp.asarray([0, *read]),
        "num_points": jnp.asarray(n),
        "num_left_out": index.num_left_out,
        "bias": jnp.mean(signed),
        "bias_error": jnp.std(signed, ddof=1) / config.bias_draws**0.5,
        **{f"sample_{name}": values for name, values in alone.items()},
        **{f"neighbor_{name}": values for name, values in both.items()},
    }


def plot(metrics):
    figure, axes = figures.panels(1, 3)
    mean = {name: np.asarray(values, np.float64).mean(0) for name, values in metrics.items()}
    density, sizes = mean["density"], mean["size"]
    for axis, place in ((axes[0], 0), (axes[1], -1)):
        for row, start in enumerate(mean["setting_cost"]):
            label = "sample alone" if row == 0 else f"neighbours, index {start:.0f}"
            values = metrics["test_error"][:, row, place]
            figures.band(axis, start + sizes, values, label=label)
        axis.axhline(0.1, color="#5d6770", linewidth=0.8, linestyle=":")
        axis.axvline(mean["num_points"], color="#5d6770", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel="distances per query")
        axis.set(ylabel="mean relative error", title=f"density {density[place]:.0e}")
    axes[0].legend()
    for name, label in (("sample", "sample alone"), ("neighbor", "neighbours and sample")):
        figures.band(axes[2], density, metrics[f"{name}_cost"], label=label, marker="o")
    axes[2].axhline(mean["num_points"], color="#5d6770", linewidth=0.8, label="all points")
    axes[2].set(xscale="log", yscale="log", xlabel="density (median mean kernel)")
    axes[2].set(
        ylim=(10, 2 * mean["num_points"]),
        ylabel="distances per query",
        title="Cost of a relative error of 0.1",
    )
    axes[2].legend()
    return figure


CLAIMS = (
    Claim(
        text="where the density is low, near neighbours and a sample beat a sample alone",
        paper="karppa:22",
        reported="times at 1e-5: ALOI .182 to 4.548 ms, Census .736 to 9.037, Shuttle .065 to .527",
        measure=lambda m: m["sample_cost"][:, -1] / m["neighbor_cost"][:, -1],
        holds=lambda ratio: ratio >= 2,
        rule="every",
        threshold="cost of sample / cost with neighbours >= 2 at density 1e-5",
        verdict="reproduced",
    ),
    Claim(
        text="where the density is low, near neighbours and a sample beat all points",
        paper="karppa:22",
        reported="times at 1e-5: ALOI .182 to 1.057 ms, Census .736 to 22.28, Shuttle .065 to .672",
        measure=lambda m: m["num_points"] / m["neighbor_cost"][:, -1],
        holds=lambda ratio: ratio >= 2,
        rule="every",
        threshold="points / cost with neighbours >= 2 at density 1e-5",
        verdict="reproduced",
    ),
    Claim(
        text="where the density is high, a sample alone is cheaper than near neighbours too",
        paper="karppa:22",
        reported="times at 1e-2: GloVe .001 to .003 ms, SVHN .189 to .448",
        measure=lambda m: m["neighbor_cost"][:, 0] / m["sample_cost"][:, 0],
        holds=lambda ratio: ratio > 1,
        rule="every",
        threshold="cost with neighbours / cost of sample > 1 at density 1e-2",
        verdict="not reproduced",
    ),
    Claim(
        text="the estimate has no bias, also where the index misses most neighbours",
        paper="karppa:22",
        reported="proved",
        measure=lambda m: np.abs(m["bias"] / m["bias_error"]),
        holds=lambda z: z < 3,
        rule="every",
        threshold="mean signed relative error < 3 of its standard errors",
        verdict="reproduced",
    ),
    Claim(
        text="the standard error that comes with an estimate is honest",
        paper="karppa:22",
        reported="not in the paper; promised by this library",
        measure=lambda m: np.mean(m["neighbor_covered"], axis=1),
        holds=lambda covered: covered >= 0.9,
        rule="mean",
        threshold="95% intervals cover >= 0.9 of the exact values, over the four densities",
        verdict="not reproduced",
    ),
)
