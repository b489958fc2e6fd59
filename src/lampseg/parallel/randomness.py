"""Randomness that depends on the operation, not on the device: dropout is the same on one device and on many.

Every random operation of a forward pass is seeded by (seed of the micro-batch, number of the operation). So the masks
do not depend on how the network is split, and a recomputed segment draws the same ones without saved generator states.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch

# fmt: off
_RANDOM = frozenset({
    "_sample_dirichlet", "_standard_gamma", "alpha_dropout", "alpha_dropout_", "bernoulli", "bernoulli_", "binomial",
    "cauchy_", "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "exponential_", "feature_alpha_dropout",
    "feature_alpha_dropout_", "feature_dropout", "feature_dropout_", "fractional_max_pool2d", "fractional_max_pool3d",
    "geometric_", "gru", "gumbel_softmax", "log_normal_", "lstm", "multi_head_attention_forward", "multinomial",
    "native_dropout", "normal", "normal_", "poisson", "rand", "rand_like", "randint", "randint_like", "randn",
    "randn_like", "random_", "randperm", "rnn_relu", "rnn_tanh", "rrelu", "rrelu_", "scaled_dot_product_attention",
    "uniform_",
})
# fmt: on


def is_random(name: str) -> bool:
    """Whether a torch function may draw random numbers."""
    return name in _RANDOM


def mix(*numbers: int) -> int:
    """A seed from several numbers, the same on every machine."""
    digest = hashlib.sha256(",".join(str(number) for number in numbers).encode()).digest()
    return int.from_bytes(digest[:7], "big")


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Runs its body with generators seeded by `seed`; the generators are as before afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
