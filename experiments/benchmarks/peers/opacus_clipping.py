"""Clipped gradients by Opacus: per-sample gradients from hooks, and ghost clipping.

The models are those of `models.py` in PyTorch's own layers. Noise and the optimiser's step, which a
plain training step has too or which cost little, are left out on both sides.

    python -m experiments.benchmarks.peers.opacus_clipping CASE JOB [--tiny]
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.worker import serve


def model_and_batch(name: str, tiny: bool) -> tuple[Any, Any, Any]:
    """The model, its inputs and its targets."""
    import torch
    from torch import nn
    from torch.nn import functional

    torch.manual_seed(0)
    family, *options = name.split("-")

    def attention(qkv: Any, heads: int, *, causal: bool) -> Any:
        b, t, d = qkv.shape
        q, k, v = qkv.view(b, t, 3, heads, d // 3 // heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return mixed.transpose(1, 2).reshape(b, t, d // 3)

    class Block(nn.Module):
        """One pre-norm block of attention and a two-layer perceptron."""

        def __init__(self, width: int, heads: int, norm: Any, *, bias: bool, causal: bool):
            super().__init__()
            self.heads, self.causal = heads, causal
            self.norm_1, self.norm_2 = norm(width), norm(width)
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
            self.out = nn.Linear(width, width, bias=bias)
            self.up = nn.Linear(width, 4 * width, bias=bias)
            self.down = nn.Linear(4 * width, width, bias=bias)

        def forward(self, h: Any) -> Any:
            mixed = attention(self.qkv(self.norm_1(h)), self.heads, causal=self.causal)
            h = h + self.out(mixed)
            return h + self.down(functional.gelu(self.up(self.norm_2(h)), approximate="tanh"))

    class Transformer(nn.Module):
        """The causal language model; its head is a layer of its own."""

        def __init__(self, length: int, width: int, layers: int, heads: int, vocabulary: int):
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            self.positions = nn.Embedding(length, width)
            blocks = [
                Block(width, heads, nn.RMSNorm, bias=False, causal=True) for _ in range(layers)
            ]
            self.blocks = nn.Sequential(*blocks)
            self.norm = nn.RMSNorm(width)
            self.head = nn.Linear(width, vocabulary, bias=False)

        def forward(self, ids: Any) -> Any:
            places = torch.arange(ids.shape[1]).expand(ids.shape).contiguous()
            h = self.blocks(self.embedding(ids) + self.positions(places))
            return self.head(self.norm(h)).transpose(1, 2)

    class VisionTransformer(nn.Module):
        """Patches, blocks, the mean of the tokens."""

        def __init__(self, size: int, width: int, layers: int, heads: int, patch: int = 4):
            super().__init__()
            self.patch = patch
            self.patches = nn.Linear(3 * patch**2, width)
            self.positions = nn.Embedding((size // patch) ** 2, width)
            blocks = [
                Block(width, heads, nn.LayerNorm, bias=True, causal=False) for _ in range(layers)
            ]
            self.blocks = nn.Sequential(*blocks)
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, 10)

        def forward(self, x: Any) -> Any:
            x = functional.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
            places = torch.arange(x.shape[1]).expand(x.shape[:2]).contiguous()
            h = self.blocks(self.patches(x) + self.positions(places))
            return self.head(self.norm(h).mean(1))

    class LastState(nn.Module):
        """A recurrent layer and a classifier on its last state."""

        def __init__(self, layer: Any, hidden: int):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(hidden, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.layer(x)[0][:, -1])

    def labels(batch: int, classes: int = 10) -> Any:
        return torch.randint(classes, (batch,))

    if family == "mlp":
        batch, sizes = (4, (6, 8, 8, 3)) if tiny else (int(options[0]), (784, 1024, 1024, 10))
        layers: list[Any] = []
        for m, n in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(m, n), nn.ReLU()]
        return nn.Sequential(*layers[:-1]), torch.randn(batch, sizes[0]), labels(batch, sizes[-1])
    if family == "cnn":
        batch, size, a, b, hidden = (4, 8, 2, 3, 5) if tiny else (64, 28, 32, 64, 128)
        flat = (size // 4) ** 2 * b
        model = nn.Sequential(
            *(nn.Conv2d(1, a, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
        )
        return model, torch.randn(batch, 1, size, size), labels(batch)
    if family == "vit":
        batch, size, width, layers_, heads = (4, 8, 12, 2, 3) if tiny else (16, 32, 192, 12, 3)
        model = VisionTransformer(size, width, layers_, heads)
        return model, torch.randn(batch, 3, size, size), labels(batch)
    if family == "lstm":
        batch, length, inputs, hidden = (4, 5, 3, 6) if tiny else (32, 50, 64, 256)
        model = LastState(nn.LSTM(inputs, hidden, batch_first=True), hidden)
        return model, torch.randn(batch, length, inputs), labels(batch)
    length = 6 if tiny else int(options[0])
    sizes = (length, 8, 2, 2, 11) if tiny else (length, 256, 4, 4, 1000)
    ids = torch.randint(sizes[-1], (4 if tiny else 16, length + 1))
    return Transformer(*sizes), ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def private_lstm(model: Any) -> Any:
    """The same model with Opacus's own recurrent layer in place of PyTorch's."""
    from opacus.layers import DPLSTM

    layer = model.layer
    model.layer = DPLSTM(layer.input_size, layer.hidden_size, batch_first=True)
    model.layer.load_state_dict(layer.state_dict())
    return model


def build(name: str, job: str, tiny: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return the step of a job and what there is to say about it."""
    import importlib.metadata

    import opacus  # noqa: F401  (a missing Opacus is reported before anything is built)
    import torch
    from opacus import optimizers
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from torch import nn

    warnings.simplefilter("ignore")
    model, x, y = model_and_batch(name, tiny)
    size = x.shape[0]
    parameters = list(model.parameters())

    def flat_loss(reduction: str) -> Any:
        """One loss per example, a language model's being the mean over its tokens."""

        class PerExample(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.reduction = reduction

            def forward(self, outputs: Any, targets: Any) -> Any:
                losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
                losses = losses.mean(1) if losses.ndim == 2 else losses
                return losses if self.reduction == "none" else losses.mean()

        return PerExample()

    criterion = flat_loss("mean")
    options = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": size}
    result: Callable[[], list[Any]]
    if job == "plain":

        def step() -> None:
            model.zero_grad()
            criterion(model(x), y).backward()

        result = lambda: [p.grad for p in parameters]
    else:
        model = private_lstm(model) if name == "lstm" else model
        if job == "hooks":
            private = GradSampleModule(model)
            optimizer = optimizers.DPOptimizer(torch.optim.SGD(model.parameters(), 0.1), **options)

            def step() -> None:
                optimizer.zero_grad()
                criterion(private(x), y).backward()
                optimizer.clip_and_accumulate()

            result = lambda: [p.summed_grad / size for p in model.parameters()]
        else:
            private = GradSampleModuleFastGradientClipping(model, max_grad_norm=1.0)
            optimizer = optimizers.DPOptimizerFastGradientClipping(
                torch.optim.SGD(model.parameters(), 0.1), **options
            )
            ghost_loss = DPLossFastGradientClipping(private, optimizer, criterion)

            def step() -> None:
                optimizer.zero_grad()
                ghost_loss(private(x), y).backward()

            result = lambda: [p.grad / size for p in model.parameters()]
    step()
    value = sum(float((g.double() ** 2).sum()) for g in result()) ** 0.5
    return step, {
        "value": value,
        "quantity": "plain, PyTorch" if job == "plain" else "clipped mean, PyTorch",
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "opacus")},
    }


if __name__ == "__main__":
    _, name, job, *rest = sys.argv
    serve(lambda: build(name, job, bool(rest)))
