"""The experiment's result: a row per blend and kind of prompt, with its spread over seeds, and the claims."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from jobs.experiment_presets import BEST, PURE, TRUTH
from jobs.experiment_prompts import KINDS
from pipeline.schemas import EXPERIMENT

Cell = tuple[float, str, str]
"""Noise, blend, kind of prompt."""


@dataclass(frozen=True)
class Claim:
    """A difference between two cells, in points of attributes, and how large it is to be.

    differences: one per seed, which both cells share.
    """

    text: str
    differences: Sequence[float]
    bar: float

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def holds(self) -> bool:
        return self.mean >= self.bar


@dataclass(frozen=True)
class Results:
    """Percent of attributes that are right, of every cell, by seed."""

    by_seed: Mapping[Cell, Mapping[int, Mapping[str, float]]]

    @classmethod
    def of(cls, samples: pa.Table) -> "Results":
        """From EXPERIMENT_SAMPLES of all generators."""
        sums: dict[Cell, dict[int, list[dict]]] = defaultdict(lambda: defaultdict(list))
        for row in samples.to_pylist():
            sums[row["noise"], row["blend"], row["kind"]][row["seed"]].append(row)
        return cls(
            {
                cell: {seed: _shares(rows) for seed, rows in sorted(seeds.items())}
                for cell, seeds in sums.items()
            }
        )

    def table(self) -> pa.Table:
        """EXPERIMENT, in the order of the cells as they came."""
        rows = []
        for (noise, blend, kind), seeds in self.by_seed.items():
            values = [shares["attributes"] for shares in seeds.values()]
            rows.append(
                {
                    "noise": noise,
                    "blend": blend,
                    "kind": kind,
                    "seeds": len(seeds),
                    "images": int(sum(shares["images"] for shares in seeds.values())),
                    "attributes": statistics.fmean(values),
                    "spread": statistics.stdev(values) if len(values) > 1 else None,
                    "least": min(values),
                    "most": max(values),
                    "all_right": statistics.fmean(s["all_right"] for s in seeds.values()),
                    "of_told": statistics.fmean(s["of_told"] for s in seeds.values()),
                }
            )
        return pa.Table.from_pylist(rows, EXPERIMENT)

    def claims(self, noise: float, first_noise: float) -> Iterator[Claim]:
        """What the paper says, and by how many points; of what was trained.

        Of nothing but synthetic captions there is one generator, whatever the alt texts are. Upsampled
        prompts are counted twice: by what the user asked, mostly shapes, which are the hardest to
        draw, and by all that the description says, as descriptive prompts are.
        """
        best = {kind: self.by_seed.get((noise, BEST, kind)) for kind in KINDS}
        truth = self.by_seed.get((noise, TRUTH, "descriptive"))
        if best["descriptive"] and truth:
            yield Claim(
                "descriptive prompts: 95 % descriptive over ground truth alone",
                _differences(best["descriptive"], truth),
                30.0,
            )
        for kind in ("ground_truth", "short"):
            name = kind.replace("_", " ")
            pure = self.by_seed.get((first_noise, PURE, kind))
            if best[kind] and pure:
                text = f"{name} prompts: 95 % over 100 % descriptive"
                yield Claim(text, _differences(best[kind], pure), 10.0)
            raised = best[f"{kind}_upsampled"]
            for counted, what in {"attributes": "was asked", "of_told": "is described"}.items():
                if raised and best["descriptive"]:
                    text = f"{name} prompts upsampled, what {what}: 95 %, beside descriptive ones"
                    found = _differences(raised, best["descriptive"], counted)
                    yield Claim(text, found, -5.0)


def _shares(rows: Sequence[Mapping]) -> dict[str, float]:
    """Percent; every attribute that is stated counts once."""
    stated, told = sum(r["stated"] for r in rows), sum(r["told_stated"] for r in rows)
    return {
        "attributes": 100 * sum(r["right"] for r in rows) / max(1, stated),
        "of_told": 100 * sum(r["told_right"] for r in rows) / max(1, told),
        "all_right": 100 * sum(r["is_scene"] and not r["wrong"] for r in rows) / len(rows),
        "images": len(rows),
    }


def _differences(
    high: Mapping[int, Mapping[str, float]],
    low: Mapping[int, Mapping[str, float]],
    counted: str = "attributes",
) -> list[float]:
    """Of the seeds that both have. counted: what of `high`."""
    return [high[seed][counted] - low[seed]["attributes"] for seed in high if seed in low]


def lines(results: Results, noises: Sequence[float]) -> Iterator[str]:
    """The table as text, and the claims below it."""
    width = max(map(len, KINDS)) + 2
    for noise in noises:
        blends = list(dict.fromkeys(b for n, b, _ in results.by_seed if n == noise))
        if not blends:
            continue
        of = "counted" if noise == 1 else f"{noise:g} x counted"
        yield f"percent of stated attributes right, mean and spread; noise of alt texts: {of}"
        yield f"{'':{width}}" + "".join(f"{blend:>13}" for blend in blends)
        for kind in KINDS:
            cells = [_cell(results.by_seed.get((noise, blend, kind))) for blend in blends]
            yield f"  {kind.replace('_', ' '):{width - 2}}" + "".join(f"{c:>13}" for c in cells)
        for claim in results.claims(noise, noises[0]):
            if claim.differences:
                yield f"  {_told(claim)}"
        yield ""


def _cell(seeds: Mapping[int, Mapping[str, float]] | None) -> str:
    if not seeds:
        return ""
    values = [shares["attributes"] for shares in seeds.values()]
    spread = f" +-{statistics.stdev(values):4.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _told(claim: Claim) -> str:
    spread = f" +- {statistics.stdev(claim.differences):.1f}" if len(claim.differences) > 1 else ""
    verdict = "holds" if claim.holds else "MISSED"
    return f"{claim.text}: {claim.mean:+.1f}{spread} points, wanted {claim.bar:+g}: {verdict}"
