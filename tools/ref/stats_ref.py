"""Reference numbers for tests/test_stats.c: scikit-learn's and SciPy's own functions on small random data.

    pip install scikit-learn==1.7.2
    python3 tools/ref/stats_ref.py        writes tests/fixtures/stats/reference.json
"""
import json
import pathlib

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import spearmanr, ttest_1samp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

N, P, CLUSTERS = 80, 10, 16
OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/fixtures/stats/reference.json"


def logistic(x, y, l1):
    """L1 logistic regression, intercept not penalised, as a smooth problem: w = u - v with u, v >= 0."""
    z = StandardScaler().fit_transform(x)
    n, p = z.shape

    def loss(t):
        m = z @ (t[:p] - t[p:-1]) + t[-1]
        r = (expit(m) - y) / n
        g = z.T @ r
        return (np.logaddexp(0, m) - y * m).mean() + l1 * t[:-1].sum(), np.r_[g + l1, l1 - g, r.sum()]

    m = minimize(loss, np.zeros(2 * p + 1), jac=True, method="L-BFGS-B", bounds=[(0, None)] * (2 * p) + [(None, None)],
                 options={"maxiter": 100000, "maxfun": 1000000, "ftol": 0, "gtol": 1e-11})
    return {"l1": l1, "w": (m.x[:p] - m.x[p:-1]).tolist(), "b": float(m.x[-1])}


def logistic_l2(x, y, l2):
    z = StandardScaler().fit_transform(x)
    m = LogisticRegression(C=1 / (len(y) * l2), solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(z, y)
    return {"l2": l2, "w": m.coef_[0].tolist(), "b": float(m.intercept_[0])}


def ridge(x, label, train, test, lam):
    """One-hot ridge regression on standardised features; the class with the highest value."""
    s = StandardScaler().fit(x[train])
    one_hot = np.eye(label.max() + 1)[label[train]]
    m = Ridge(alpha=lam * len(train)).fit(s.transform(x[train]), one_hot)
    return m.predict(s.transform(x[test])).argmax(1).tolist()


def main():
    rng = np.random.default_rng(7)
    cluster = np.arange(N) % CLUSTERS
    x = rng.normal(size=(N, P)) @ rng.normal(size=(P, P)) * 0.5 + rng.normal(size=(CLUSTERS, P))[cluster]
    x = x.astype(np.float32).astype(np.float64)  # the ridge probe reads f32
    y = (x @ rng.normal(size=P) + 2 * rng.normal(size=N) > 0.5).astype(int)
    score = np.round(x[:, 0] + y, 1)  # with ties
    label = (np.abs(x[:, 1]) * 2).astype(int) % 3
    per_cluster = np.array([x[cluster == k].mean(0) for k in range(CLUSTERS)])
    train, test = np.arange(N)[cluster < 12], np.arange(N)[cluster >= 12]
    ref = {
        "cluster": cluster.tolist(), "x": x.tolist(), "y": y.tolist(), "score": score.tolist(),
        "label": label.tolist(),
        "l1": [logistic(x, y, v) for v in (0.3, 0.05, 0.01, 0.001)],
        "l2": [logistic_l2(x, y, v) for v in (1.0, 0.01)],
        "auroc": float(roc_auc_score(y, score)),
        "spearman": float(spearmanr(score, x[:, 2]).statistic),
        "t": ttest_1samp(per_cluster, 0).statistic.tolist(),
        "p": ttest_1samp(per_cluster, 0).pvalue.tolist(),
        "ridge": {"train_below": 12, "lambda": 0.1, "predicted": ridge(x, label, train, test, 0.1)},
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(ref) + "\n")


if __name__ == "__main__":
    main()
