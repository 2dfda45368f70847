"""How much rules' votes tell about the hidden preference: Theorem 3.4 and its lemmas. All in nats.

Theorem 3.4 says that the r rules with the largest |d_i|, d_i = ψ_i(v_A) − ψ_i(v_B), maximise the mutual information
I(T_s; H) between their votes T_s ∈ {±1}^r and the hidden label H, uniform on {±1}. Its model: given H, the votes are
independent and T_i = H with probability σ(d_i).

The paper's proof (Appendix A) writes I(T_s; H) as the sum of the single rules' informations, and that is false:
votes that are independent *given* H repeat each other about H. For d = (1, 1) the sum is 0.222, the joint
information 0.199; five rules with d = 2 sum to 1.64, more than the log 2 = 0.693 that H holds at all.

The conclusion stands nevertheless. A vote with the smaller |d_i| is, up to its sign, a vote with the larger one sent
through one more symmetric noisy channel; so exchanging the first for the second never loses information,
whatever the other votes are (data-processing inequality). The tests hold the maximiser against enumeration.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ramo_ray.core.bradley_terry import log_sigmoid

FloatArray = NDArray[np.float64]

MOST_VOTES = 16
"""Rules whose joint votes `vote_information` enumerates: 65,536 outcomes."""


def entropy(probabilities: ArrayLike) -> float:
    """Shannon entropy −Σ p log p of a distribution of any shape (Definition A.1)."""
    p = _distribution(probabilities)
    return float(-(p * _log(p)).sum())


def kullback_leibler(u: ArrayLike, v: ArrayLike) -> float:
    """D_KL(U‖V) = Σ U log(U / V); infinite where U has mass and V has none (Definition A.2)."""
    p, q = _distribution(u), _distribution(v)
    if p.shape != q.shape:
        raise ValueError(f"distributions over different supports: {p.shape} and {q.shape}")
    if (p[q == 0] > 0).any():
        return float("inf")
    return float((p * (_log(p) - _log(q))).sum())


def jensen_shannon(u: ArrayLike, w: ArrayLike) -> float:
    """D_JS(U‖W): the mean divergence of U and W from their mixture (Definition A.3). At most log 2."""
    p, q = _distribution(u), _distribution(w)
    mixture = (p + q) / 2
    return (kullback_leibler(p, mixture) + kullback_leibler(q, mixture)) / 2


def mutual_information(joint: ArrayLike) -> float:
    """I(U; V) from the table [U, V] of joint probabilities (Definition 3.3)."""
    table = _distribution(joint)
    if table.ndim != 2:
        raise ValueError(f"expected a table [U, V] of joint probabilities, got the shape {table.shape}")
    return kullback_leibler(table, table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True))


def bernoulli_js(d: ArrayLike) -> FloatArray:
    """D_JS(Bern(σ(d))‖Bern(σ(−d))) = log 2 − H(σ(d)), elementwise (Lemma A.6).

    By Lemma A.5 it is the information I(T_i; H) in one rule's vote: even in d, strictly increasing in |d|.
    """
    log_p, log_q = log_sigmoid(d), log_sigmoid(-np.asarray(d, dtype=np.float64))
    return np.asarray(np.log(2) + np.exp(log_p) * log_p + np.exp(log_q) * log_q)


def vote_information(d: ArrayLike) -> float:
    """I(T_s; H) of r rules' votes together, exactly, over all 2^r outcomes, under Theorem 3.4's model.

    d [r] holds the selected rules' ψ_i(v_A) − ψ_i(v_B). At most the sum of `bernoulli_js(d)`, with which the
    paper's proof equates it. ValueError for more than `MOST_VOTES` rules.
    """
    differences = np.asarray(d, dtype=np.float64)
    if differences.ndim != 1 or len(differences) > MOST_VOTES:
        raise ValueError(f"expected at most {MOST_VOTES} differences [r], got the shape {differences.shape}")
    votes = np.array(list(product((1.0, -1.0), repeat=len(differences))))
    given_a = np.exp(log_sigmoid(votes * differences).sum(axis=1))
    given_b = np.exp(log_sigmoid(-votes * differences).sum(axis=1))
    return mutual_information(np.stack([given_a, given_b]) / 2)


def _distribution(probabilities: ArrayLike) -> FloatArray:
    p = np.asarray(probabilities, dtype=np.float64)
    if not (p >= 0).all() or not np.isclose(p.sum(), 1):
        raise ValueError("not a distribution: probabilities must be non-negative and sum to 1")
    return p


def _log(p: FloatArray) -> FloatArray:
    """log p, and 0 where p is 0: there its factor is 0 as well."""
    return np.asarray(np.log(np.where(p > 0, p, 1.0)))
