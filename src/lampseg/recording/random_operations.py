"""Which torch functions draw random numbers."""

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
