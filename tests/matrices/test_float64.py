"""In double precision every verb agrees to 12 digits; a process of its own, as users would."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np

from tests.matrices import oracle
from tests.matrices.models import attention, dense, lookup

PROGRAM = """
    import jax
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    from tests.matrices.test_float64 import check
    check()
"""


def widened(model):
    def wide(x):
        keep = not hasattr(x, "dtype") or jnp.issubdtype(x.dtype, jnp.integer)
        return x if keep else jnp.asarray(np.asarray(x, np.float64))

    return model._replace(args=jax.tree.map(wide, model.args))


def check() -> None:
    """Compare every verb to 1e-12 on models with every kind of term."""
    builders = (
        dense.mlp,
        dense.shared_weight,
        dense.penalized,
        attention.MODELS["transformer_scan_tied_remat"],
        lookup.tied_embedding,
    )
    for build in builders:
        model = widened(build())
        G = jax.eval_shape(lambda *args, m=model: oracle.matrix(m._replace(args=args)), *model.args)
        assert G.dtype == np.float64
        oracle.assert_exact(model, route="factors", tolerance=1e-12, read=oracle.verbs)


def test_double_precision():
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_double_precision_within_this_process():
    with jax.enable_x64(True):
        oracle.assert_exact(widened(dense.mlp()), tolerance=1e-12, read=oracle.verbs)
