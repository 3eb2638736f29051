"""The strategies of a class: clusters of its maps (SpRAy; Lapuschkin et al. 2019).

A network has several strategies for a class if its maps fall into groups. They are a view to look at. Most
networks have some that only follow where the object lies, so a cluster by itself is no evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.csgraph import laplacian
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

MOST_CLUSTERS = 8
LEAST_MAPS = 10  # of a class, to look for clusters
NEIGHBOURS = 10  # of a map in the graph
MOST_MAPS = 2000  # of a class that make the clusters; all others join that of their nearest map
EXEMPLARS = 12  # of a cluster, at most
_RESTARTS = 4  # of k-means


@dataclass(frozen=True, eq=False)
class Cluster:
    """One strategy.

    Attributes
    ----------
    rows
        (n,) the rows of its maps, ascending.
    exemplars
        At most 12 of them, the nearest to the mean map first.
    mean
        (h, w) the mean map, which adds up to 1.
    """

    rows: Rows
    exemplars: Rows
    mean: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Strategies:
    """The strategies of a class.

    Attributes
    ----------
    clusters
        The largest first.
    empty
        (n,) rows of maps that are zero everywhere; they belong to no cluster.
    reason
        Why no clusters were looked for; empty if they were.
    """

    clusters: list[Cluster]
    empty: Rows
    reason: str = ""


def strategies_of(maps: NDArray[np.float32], rows: Rows, seed: int) -> Strategies:
    """Find the strategies of a class.

    Parameters
    ----------
    maps
        (N, h, w), as :func:`tasks.findings.seen.pooled` makes them: each adds up to 1, or is zero everywhere.
    rows
        (n,) the maps of the class.
    seed
        Of the maps that are drawn and of k-means.

    Returns
    -------
    Strategies
        With fewer than 10 maps that are not zero, all of them are one cluster. Without any, there is none.
    """
    flat = maps.reshape(len(maps), -1)[rows]
    there = flat.any(1)
    empty, own, points = rows[~there], rows[there], flat[there].astype(np.float64)
    if not len(own):
        return Strategies([], empty, "every map is zero everywhere" if len(rows) else "it has no map")
    if len(own) < LEAST_MAPS:
        numbers, reason = np.zeros(len(own), np.int64), f"it has {len(own)} maps, fewer than {LEAST_MAPS}"
    else:
        numbers, reason = _clustered(points, seed), ""
    found = [_cluster(own[numbers == n], points[numbers == n], maps.shape[1:]) for n in np.unique(numbers)]
    return Strategies(sorted(found, key=lambda each: (-len(each.rows), each.rows[0])), empty, reason)


def eigengap(values: Floats) -> int:
    """The number of clusters that eigenvalues speak for: that before the widest gap, at most 8.

    Parameters
    ----------
    values
        (m,) ascending, the smallest eigenvalues of a normalised graph Laplacian; 2 or more.
    """
    return int(np.diff(values[: MOST_CLUSTERS + 1]).argmax()) + 1


def _clustered(points: Floats, seed: int) -> Rows:
    """The cluster (n,) of each point (n, d), counted from 0."""
    drawn = np.arange(len(points))
    if len(points) > MOST_MAPS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(points), MOST_MAPS, replace=False))
    values, vectors = _spectrum(points[drawn])
    count = eigengap(values)
    if count == 1:
        return np.zeros(len(points), np.int64)
    embedded = vectors[:, :count]
    length = np.linalg.norm(embedded, axis=1, keepdims=True)
    embedded = embedded / np.where(length > 0, length, 1)
    means = KMeans(count, n_init=_RESTARTS, random_state=seed % 2**32)
    numbers: Rows = means.fit_predict(embedded).astype(np.int64)
    if len(drawn) < len(points):
        numbers = KNeighborsClassifier(1).fit(points[drawn], numbers).predict(points)
    return numbers


def _spectrum(points: Floats) -> tuple[Floats, Floats]:
    """The smallest eigenvalues of the graph of neighbours, ascending, and their vectors in columns."""
    nearest = kneighbors_graph(points, min(NEIGHBOURS, len(points) - 1), mode="connectivity")
    symmetric = (nearest + nearest.T) / 2
    matrix = laplacian(symmetric, normed=True).toarray()
    last = min(MOST_CLUSTERS, len(points) - 1)
    values, vectors = eigh(matrix, subset_by_index=(0, last))
    return values, vectors


def _cluster(rows: Rows, points: Floats, grid: tuple[int, ...]) -> Cluster:
    mean = points.mean(0)
    nearest = np.argsort(np.square(points - mean).sum(1), kind="stable")[:EXEMPLARS]
    return Cluster(rows, rows[nearest], mean.astype(np.float32).reshape(grid))
