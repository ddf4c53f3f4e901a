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
    scanned = attention.MODELS["transformer_scan_tied_remat"]
    for build in (dense.mlp, dense.shared_weight, lookup.tied_embedding, scanned):
        model = widened(build())
        G = jax.eval_shape(lambda *args, m=model: oracle.matrix(m._replace(args=args)), *model.args)
        assert G.dtype == np.float64
        read = oracle.verbs if build is lookup.tied_embedding else oracle.core_verbs
        oracle.assert_exact(model, route="factors", tolerance=1e-12, read=read)


def test_double_precision():
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
