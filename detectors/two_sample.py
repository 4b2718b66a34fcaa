"""Classic tests of two samples, to explain a drift that another rule has found. They alarm nobody.

Each is a pure function of two samples (n, d) and (m, d), x the older and y the newer one, and returns a `TestResult`.
They trust records to be independent of each other: near-duplicates and sessions make their p-values too small, which
is why the alarm itself is another rule (`detectors.fold`).

* `mmd`: maximum mean discrepancy (Gretton, Borgwardt, Rasch, Schölkopf, Smola, 2012): any difference at all.
* `domain_classifier`: can a logistic regression tell them apart (Lopez-Paz, Oquab, 2017)?
* `frechet`: distance of two normal laws with the same means and covariances (Dowson, Landau, 1982).
* `component_ks`: the test of Kolmogorov (1933) and Smirnov (1939) on principal components, corrected by Holm (1979).
* `component_psi`, `histogram_psi`: the population stability index of credit scoring, with its law (Yurdakul, 2018).

p-values by permutation are (1 + hits) / (1 + permutations) and exact for exchangeable records (Phipson, Smyth, 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.errors import InvalidInput

Floats = npt.NDArray[np.float64]

MIN_SAMPLE = 20  # of either: below, none of the tests says anything
MOST_ROWS = 1_000  # of either sample in `mmd`, whose kernel is quadratic in them
PERMUTATIONS = 499
CLASSIFIERS = 199  # permutations of the domain classifier, which has to learn anew for each
NEWTON_STEPS = 6
MOST_LEARNED = 500  # rows of either sample that the domain classifier sees
MAX_COMPONENTS = 16
FOLDS = 5
PSI_BINS = 10
_CHUNK = 100  # permutations at once; bounds the memory


@dataclass(frozen=True, slots=True)
class TestResult:
    """What a test says.

    Attributes:
        name: of the test.
        n, m: records of the older and of the newer sample that it used.
        statistic: in the test's own unit; larger is more different.
        p_value: chance of such a statistic where both samples come from one law.
        low, high: 95 % interval of the statistic; None where the test has none.
        component: the principal component that differs most, from 0; None where the test has none.
        changed: components with a corrected p-value of at most 0.05; None where the test has none.
    """

    __test__ = False  # pytest: not a class of tests

    name: str
    n: int
    m: int
    statistic: float
    p_value: float
    low: float | None = None
    high: float | None = None
    component: int | None = None
    changed: int | None = None


def mmd(
    x: npt.ArrayLike, y: npt.ArrayLike, *, seed: int, permutations: int = PERMUTATIONS, most: int = MOST_ROWS
) -> TestResult:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel, p by permutation.

    The kernel's width is the median distance in the pooled sample, so it is the same for every permutation.

    Args:
        x, y: (n, d), (m, d), at least 20 rows each.
        seed: of the permutations and of the choice of rows.
        permutations: how many.
        most: rows of either sample that are used, chosen at random.

    Raises:
        InvalidInput: too few rows, other shapes, or values that are not finite.
    """
    a, b = _checked(x, y)
    random = np.random.default_rng(seed)
    a, b = _thinned(a, most, random), _thinned(b, most, random)
    n, m = len(a), len(b)
    pooled = np.concatenate([a, b])
    squares = _squared_distances(pooled)
    median = float(np.median(squares[np.triu_indices(n + m, 1)]))
    kernel = np.exp(-squares / (median if median > 0 else 1.0))
    np.fill_diagonal(kernel, 0.0)
    within = kernel.sum()

    def value(members: Floats) -> Floats:
        """Statistic of each column of 0 and 1, (n + m, k): 1 is the first sample."""
        reached = kernel @ members
        first = (members * reached).sum(axis=0)
        cross = ((1.0 - members) * reached).sum(axis=0)
        second = within - first - 2.0 * cross
        return np.asarray(first / (n * (n - 1)) + second / (m * (m - 1)) - 2.0 * cross / (n * m))

    truth = np.zeros((n + m, 1))
    truth[:n] = 1.0
    observed = float(value(truth)[0])
    hits = 0
    for start in range(0, permutations, _CHUNK):
        columns = np.tile(truth, min(_CHUNK, permutations - start))
        hits += int(np.count_nonzero(value(random.permuted(columns, axis=0)) >= observed - 1e-15))
    return TestResult("mmd", n, m, observed, (1 + hits) / (1 + permutations))


def domain_classifier(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    seed: int,
    permutations: int = CLASSIFIERS,
    components: int = MAX_COMPONENTS,
    most: int = MOST_LEARNED,
) -> TestResult:
    """Area under the ROC curve of a logistic regression that tells y from x: 0.5 is chance, 1 is certain.

    It sees the first principal components of the pooled sample, whitened. Each of 5 folds is judged by a classifier
    that has not seen it; the area is the mean over folds. The p-value is by permutation within the folds; the interval
    takes the variance within folds of DeLong, DeLong, Clarke-Pearson (1988), which leaves out that the classifiers
    share records, and is somewhat too short.

    Args:
        x, y: (n, d), (m, d), at least 20 rows each.
        seed: of the folds, the permutations and the choice of rows.
        permutations: how many.
        components: at most so many; never more than a fourth of the smaller sample.
        most: rows of either sample that are used, chosen at random.

    Raises:
        InvalidInput: see `mmd`.
    """
    a, b = _checked(x, y)
    random = np.random.default_rng(seed)
    a, b = _thinned(a, most, random), _thinned(b, most, random)
    rows = _principal(np.concatenate([a, b]), min(components, min(len(a), len(b)) // 4, a.shape[1]))
    scale = rows.std(axis=0)
    rows = rows / np.where(scale > 1e-9 * scale.max(), scale, 1.0)
    rows = np.column_stack([rows, np.ones(len(rows))])
    fold = np.concatenate([random.permutation(len(sample)) % FOLDS for sample in (a, b)])
    label = np.repeat([0.0, 1.0], [len(a), len(b)])
    labels = np.tile(label, (1 + permutations, 1))  # the first row is the truth
    for k in range(FOLDS):
        inside = np.flatnonzero(fold == k)
        labels[1:, inside] = random.permuted(labels[1:, inside], axis=1)
    areas = np.zeros(1 + permutations)
    variance = 0.0
    for k in range(FOLDS):
        judged = fold == k
        weights = _logistic(rows[~judged], labels[:, ~judged])
        scores = weights @ rows[judged].T
        areas += _areas(scores, labels[:, judged]) / FOLDS
        variance += area_under_curve(scores[0, label[judged] == 0], scores[0, label[judged] == 1])[1] / FOLDS**2
    area, error = float(areas[0]), 1.96 * float(np.sqrt(variance))
    hits = int(np.count_nonzero(areas[1:] >= area - 1e-12))
    p_value = (1 + hits) / (1 + permutations)
    return TestResult(
        "domain_classifier", len(a), len(b), area, p_value, max(area - error, 0.0), min(area + error, 1.0)
    )


def _logistic(rows: Floats, labels: Floats) -> Floats:
    """Logistic regressions of each labelling (p, n) on the same rows (n, k), both classes weighing the same: (p, k).

    Newton's method on the ridge-penalised likelihood; the penalty of one keeps it from running away.
    """
    n, k = rows.shape
    i, j = np.triu_indices(k)
    squares = rows[:, i] * rows[:, j]
    ones = labels.sum(axis=1, keepdims=True)
    share = np.where(labels == 1.0, n / 2.0 / ones, n / 2.0 / (n - ones))
    weights = np.zeros((len(labels), k))
    for _ in range(NEWTON_STEPS):
        mean = 1.0 / (1.0 + np.exp(-np.clip(weights @ rows.T, -30.0, 30.0)))
        slope = (share * (labels - mean)) @ rows - weights
        curve = np.empty((len(labels), k, k))
        curve[:, i, j] = curve[:, j, i] = (share * mean * (1.0 - mean)) @ squares
        curve += np.eye(k)
        weights = weights + np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
    return np.asarray(weights)


def _areas(scores: Floats, labels: Floats) -> Floats:
    """Area under the ROC curve of each row of scores (p, n) with its labels."""
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=1)
    ones = labels.sum(axis=1)
    above = (ranks * labels).sum(axis=1) - ones * (ones + 1.0) / 2.0
    return np.asarray(above / (ones * (labels.shape[1] - ones)))


def area_under_curve(lower: npt.ArrayLike, higher: npt.ArrayLike) -> tuple[float, float]:
    """P(higher > lower) + P(equal) / 2 over all pairs, and its variance (DeLong, DeLong, Clarke-Pearson, 1988).

    Args:
        lower, higher: scores of the two classes, (n,) and (m,), at least 2 each.
    """
    a, b = np.sort(np.asarray(lower, dtype=np.float64)), np.sort(np.asarray(higher, dtype=np.float64))
    of_b = (np.searchsorted(a, b, "left") + np.searchsorted(a, b, "right")) / (2.0 * len(a))
    of_a = 1.0 - (np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")) / (2.0 * len(b))
    # Where both are told apart without a slip, the variance is not 0: as if one pair in each sample were half wrong.
    spread = max(float(of_a.var(ddof=1)), 0.25 / len(a) ** 2) / len(a)
    spread += max(float(of_b.var(ddof=1)), 0.25 / len(b) ** 2) / len(b)
    return float(of_b.mean()), spread


def frechet(
    x: npt.ArrayLike, y: npt.ArrayLike, *, seed: int, permutations: int = PERMUTATIONS, components: int = MAX_COMPONENTS
) -> TestResult:
    """Squared Fréchet distance of the two samples on the principal components of the pooled one, p by permutation.

    |mean - mean'|^2 + tr(S + S' - 2 (S S')^(1/2)), in the squared unit of the vectors.

    Args:
        x, y: (n, d), (m, d), at least 20 rows each.
        seed: of the permutations.
        permutations: how many.
        components: at most so many; never more than a fourth of the smaller sample.

    Raises:
        InvalidInput: see `mmd`.
    """
    a, b = _checked(x, y)
    n, m = len(a), len(b)
    random = np.random.default_rng(seed)
    rows = _principal(np.concatenate([a, b]), min(components, min(n, m) // 4))
    first = np.arange(n + m) < n
    observed = float(_frechet(rows, first[None])[0])
    hits = 0
    for start in range(0, permutations, _CHUNK):
        members = random.permuted(np.tile(first, (min(_CHUNK, permutations - start), 1)), axis=1)
        hits += int(np.count_nonzero(_frechet(rows, members) >= observed - 1e-12 * max(observed, 1.0)))
    return TestResult("frechet", n, m, observed, (1 + hits) / (1 + permutations))


def component_ks(x: npt.ArrayLike, y: npt.ArrayLike, *, components: int = MAX_COMPONENTS) -> TestResult:
    """Kolmogorov-Smirnov on each principal component of the pooled sample; the clearest one, corrected by Holm.

    Args:
        x, y: (n, d), (m, d), at least 20 rows each.
        components: at most so many.

    Raises:
        InvalidInput: see `mmd`.
    """
    from scipy.stats import ks_2samp

    a, b = _checked(x, y)
    along_a, along_b = _components_of(a, b, components)
    found = [ks_2samp(one, other) for one, other in zip(along_a.T, along_b.T, strict=True)]
    p = holm([test.pvalue for test in found])
    clearest = min(range(len(found)), key=lambda i: (found[i].pvalue, i))
    return TestResult(
        "ks",
        len(a),
        len(b),
        float(found[clearest].statistic),
        float(p[clearest]),
        component=clearest,
        changed=int(np.count_nonzero(p <= 0.05)),
    )


def holm(p_values: npt.ArrayLike) -> Floats:
    """p-values corrected for their number (Holm, 1979): (k,)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    result = np.empty_like(p)
    result[order] = raised
    return result


def component_psi(x: npt.ArrayLike, y: npt.ArrayLike, *, components: int = MAX_COMPONENTS) -> TestResult:
    """Population stability index on each principal component of the pooled sample, over ten deciles; the clearest one.

    Args:
        x, y: (n, d), (m, d), at least 20 rows each.
        components: at most so many; the p-value is corrected for their number (Holm).

    Raises:
        InvalidInput: see `mmd`.
    """
    a, b = _checked(x, y)
    along_a, along_b = _components_of(a, b, components)
    found = []
    for one, other in zip(along_a.T, along_b.T, strict=True):
        # Deciles of both together: bins cut on one sample alone would fit it too well.
        cuts = np.unique(np.quantile(np.concatenate([one, other]), np.arange(1, PSI_BINS) / PSI_BINS))
        counts = [
            np.bincount(np.searchsorted(cuts, values, "left"), minlength=len(cuts) + 1) for values in (one, other)
        ]
        found.append(histogram_psi(counts[0], counts[1]))
    p = holm([result.p_value for result in found])
    clearest = min(range(len(found)), key=lambda i: (found[i].p_value, -found[i].statistic))
    return TestResult(
        "psi",
        len(a),
        len(b),
        found[clearest].statistic,
        float(p[clearest]),
        component=clearest,
        changed=int(np.count_nonzero(p <= 0.05)),
    )


def histogram_psi(x: npt.ArrayLike, y: npt.ArrayLike) -> TestResult:
    """Population stability index of two histograms over the same bins: sum (q - p) log(q / p).

    By custom, below 0.1 is stable and above 0.25 has changed; the p-value takes the sizes of the samples into account:
    PSI / (1 / n + 1 / m) is about chi-squared with bins - 1 degrees of freedom (Yurdakul, 2018).

    Args:
        x, y: counts (k,) of the older and of the newer records.

    Raises:
        InvalidInput: other shapes, negative counts, or no records in one of them.
    """
    from scipy.stats import chi2

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or (a < 0).any() or (b < 0).any() or a.sum() == 0 or b.sum() == 0:
        raise InvalidInput(
            f"histograms of shapes {a.shape} and {b.shape} cannot be compared.", hint="Same bins, n > 0."
        )
    used = a + b > 0
    a, b = a[used], b[used]
    n, m = a.sum(), b.sum()
    # Half a record in every bin, so that an empty one costs much and not everything.
    p, q = (a + 0.5) / (n + 0.5 * len(a)), (b + 0.5) / (m + 0.5 * len(b))
    index = float(((q - p) * np.log(q / p)).sum())
    p_value = float(chi2.sf(index / (1.0 / n + 1.0 / m), len(a) - 1)) if len(a) > 1 else 1.0
    return TestResult("score_psi", int(n), int(m), index, max(p_value, 1e-300))


# --- pieces ----------------------------------------------------------------------------------------------------------


def _checked(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InvalidInput(f"two samples (n, d) and (m, d) are expected, got shapes {a.shape} and {b.shape}.")
    if min(len(a), len(b)) < MIN_SAMPLE:
        raise InvalidInput(
            f"samples of {len(a)} and {len(b)} records are too small to be compared.",
            hint=f"Give at least {MIN_SAMPLE} of either.",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InvalidInput("a sample holds values that are not finite.", hint="Clean the data.")
    return a, b


def _thinned(rows: Floats, most: int, random: np.random.Generator) -> Floats:
    return rows if len(rows) <= most else rows[np.sort(random.choice(len(rows), most, replace=False))]


def _squared_distances(rows: Floats) -> Floats:
    lengths = np.einsum("ij,ij->i", rows, rows)
    return np.asarray(np.maximum(lengths[:, None] + lengths - 2.0 * (rows @ rows.T), 0.0))


def _principal(rows: Floats, components: int) -> Floats:
    """Rows on their first principal components, centred: (n, k), k >= 1."""
    centred = rows - rows.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    return np.asarray(centred @ directions[:, ::-1][:, : max(components, 1)])


def _components_of(a: Floats, b: Floats, components: int) -> tuple[Floats, Floats]:
    """Both samples on the first principal components of the pooled one, which treats them alike."""
    rows = _principal(np.concatenate([a, b]), min(components, a.shape[1]))
    return rows[: len(a)], rows[len(a) :]


def _frechet(rows: Floats, members: npt.NDArray[np.bool_]) -> Floats:
    """Squared distance for each division of the rows (n, k): members (p, n), True is the first sample."""
    squares = np.einsum("ij,ik->ijk", rows, rows).reshape(len(rows), -1)
    laws = []
    for side in (members.astype(np.float64), (~members).astype(np.float64)):
        size = side.sum(axis=1)[:, None]
        mean = side @ rows / size
        second = (side @ squares / size).reshape(len(side), rows.shape[1], rows.shape[1])
        laws.append((mean, second - mean[:, :, None] * mean[:, None, :]))
    (mean, spread), (other_mean, other_spread) = laws
    values, vectors = np.linalg.eigh(spread)
    root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :] @ np.swapaxes(vectors, 1, 2)
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other_spread @ root), 0.0)).sum(axis=1)
    traces = np.trace(spread, axis1=1, axis2=2) + np.trace(other_spread, axis1=1, axis2=2)
    return np.asarray(((mean - other_mean) ** 2).sum(axis=1) + traces - 2.0 * both)
