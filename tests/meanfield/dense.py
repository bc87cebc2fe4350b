"""Dense float64 twins of what meanfield predicts: explicit tokens, explicit softmax matrices."""

import numpy as np


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def sphere_attention(rng, tokens, dim, kappa):
    """Softmax of kappa cos between independent uniform directions."""
    q, k = rng.standard_normal((2, tokens, dim))
    q /= np.linalg.norm(q, axis=-1, keepdims=True)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return softmax(kappa * q @ k.T)


def sphere_singular_values(rng, tokens, dim, kappa):
    return np.linalg.svd(sphere_attention(rng, tokens, dim, kappa), compute_uv=False)


def equiangular_tokens(tokens, spread):
    """Unit tokens (N, N) with every pair at cosine 1 - spread."""
    gram = spread * np.eye(tokens) + (1.0 - spread)
    return np.linalg.cholesky(gram)
