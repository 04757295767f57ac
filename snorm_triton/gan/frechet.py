"""The distance of two sets of features, as if each were normally distributed."""

import torch
from torch import Tensor


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of features (N, D) and (M, D), in float64.

    The squared Frechet distance of two normal distributions (Dowson and Landau, 1982), which FID
    takes in the features of an Inception network (Heusel et al., arXiv 1706.08500).
    """
    (mean, covariance), (other_mean, other_covariance) = map(_moments, (features, others))
    root = _square_root(covariance)
    product = torch.linalg.eigvalsh(root @ other_covariance @ root)
    distance = (mean - other_mean).square().sum() + (covariance + other_covariance).trace()
    return float(distance - 2 * product.clamp(min=0).sqrt().sum())


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    return features.mean(0), torch.cov(features.T)


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a symmetric, positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
