"""The page's first lines: what the tables below them come to."""

from lw_retinanet.heads import HeadPlan, plan_of

from .cost_tables import fit, giga, params
from .printed import BBOX, LIGHT_GFLOPS, SCALING_GFLOPS, titled
from .readings import READINGS, STANDARD, baselines
from .scaling_line import advantages


def summary_lines() -> list[str]:
    """A list in Markdown."""
    printed = [("retinanet", scale, gflops, f"RetinaNet {scale}") for scale, gflops in SCALING_GFLOPS.items()]
    printed += [(name, 800, gflops, titled(name)) for name, gflops in LIGHT_GFLOPS.items()]
    printed += [(name, 800, row[2], titled(name)) for name, row in BBOX.items()]
    found = [label for name, scale, gflops, label in printed if fit(STANDARD.macs(name, scale), gflops)]
    any_reading = [label for name, scale, gflops, label in printed if any(fit(way.macs(name, scale), gflops) for way in READINGS)]
    never = [label for *_, label in printed if label not in any_reading]
    own, counted = advantages(None), advantages(STANDARD)
    small, large = (advantages(STANDARD, metric=metric)["lw-v3"] for metric in (3, 5))
    base = params(HeadPlan())
    more = {name: 100 * (params(plan_of(name)) - base) / base for name in LIGHT_GFLOPS}
    full = baselines()[0]
    return [
        f"- **Costs.** The paper's GFLOPs are multiply-accumulates. One counter gives {len(found)} of its {len(printed)} costs at once "
        f"({'; '.join(found)}); none of {len(READINGS)} readings gives {'; '.join(never)}. The full network has {giga(full.macs)} G, "
        f"not 156, and D3 takes {full.d3_share:.1f} % of it, not 48.",
        f"- **The claim.** By one counter LW-v1, LW-v2 and LW-v3 stand {_signed(counted)} AP from a smaller image of equal cost; by the "
        f"paper's own columns {_signed(own)}, in its words +0.1 to +0.3. Rounding alone leaves 0.1 of that open, and the paper gives no "
        "spread over runs.",
        f"- **Sizes of objects.** At equal cost the paper's LW-v3 has {small:+.2f} AP on small and {large:+.2f} on large objects.",
        f"- **Weights.** Not less than 1 % more, but {', '.join(f'{share:.1f}' for share in more.values())} % for the three models.",
        "- **Training.** The scaling rows are quoted from the RetinaNet paper, the light rows were trained longer. Nothing separates the "
        "block from the schedule.",
    ]


def _signed(values: dict[str, float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values.values())
