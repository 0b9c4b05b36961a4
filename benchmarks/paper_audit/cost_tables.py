"""Tables of the page on arithmetic and weights."""

from collections.abc import Sequence

from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.heads import HeadPlan, Level, TowerPlan, block_tower, plan_of

from .printed import BBOX, D3_SHARE, LIGHT_GFLOPS, LIGHT_RATIOS, SCALING_GFLOPS, SCALING_RATIOS, titled
from .readings import (
    CAFFE,
    LIGHT_PREDICTION,
    PYTORCH,
    PYTORCH_STRIDE,
    READINGS,
    RELEASED,
    STANDARD,
    baselines,
    block_plan,
    make,
    total,
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown, line by line."""
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def fit(macs: float, printed: int) -> str:
    """How a count gives a printed number of G: ``rounded``, ``cut off``, or not at all: ''."""
    return "rounded" if round(macs / 1e9) == printed else "cut off" if macs // 1e9 == printed else ""


def giga(macs: float, printed: int | None = None) -> str:
    """Two digits of G, in bold where they give the printed number."""
    text = f"{macs / 1e9:.2f}"
    return f"**{text}**" if printed is not None and fit(macs, printed) else text


def params(plan: HeadPlan) -> int:
    """Of the whole network."""
    return sum(cost.params for cost in count_blocks(make(plan), (800, 800)).values())


def flops_table() -> list[str]:
    base, base_pytorch = STANDARD.macs("retinanet"), PYTORCH_STRIDE.macs("retinanet")
    ratio = SCALING_RATIOS.get
    printed = [(f"RetinaNet {scale}", "retinanet", scale, gflops, ratio(scale, "")) for scale, gflops in SCALING_GFLOPS.items()]
    printed += [(titled(name), name, 800, gflops, LIGHT_RATIOS[name]) for name, gflops in LIGHT_GFLOPS.items()]
    printed += [(titled(name), name, 800, row[2], f"-{row[3]} %") for name, row in BBOX.items()]
    rows = []
    for label, name, scale, gflops, reduction in printed:
        macs, other = STANDARD.macs(name, scale), PYTORCH_STRIDE.macs(name, scale)
        ours = f"{base / macs:.2f}x, {base_pytorch / other:.2f}x" if reduction else ""
        if name in BBOX:
            ours = f"-{100 * (1 - macs / base):.1f} %, -{100 * (1 - other / base_pytorch):.1f} %"
        rows.append([label, str(gflops), f"{macs:,}", f"{other:,}", fit(macs, gflops) or "no", reduction, ours])
    return table(["row", "paper, G", "MACs, Caffe stride", "MACs, PyTorch stride", "Caffe gives it", "less, paper", "less, counted"], rows)


def baseline_table() -> list[str]:
    rows = [["the paper", "156", "", f"{D3_SHARE} %"]]
    for way in baselines():
        share = f"{way.d3_share:.1f} %"
        rows.append([way.name, giga(way.macs, 156), giga(way.d3_macs), f"**{share}**" if round(way.d3_share) == D3_SHARE else share])
    return table(["counted", "total, G", "D3, G", "D3's share"], rows)


def excess_table() -> list[str]:
    blocks = count_blocks(make(HeadPlan()), (800, 800))
    d3 = blocks["D3"].macs
    rest, rest_pytorch = total(blocks) - d3, PYTORCH_STRIDE.macs("retinanet") - d3
    least, most = 155.5, 157.0  # rounded or cut off to 156
    share, low, high = D3_SHARE / 100, D3_SHARE / 100 - 0.005, D3_SHARE / 100 + 0.005
    excess = f"{least * low - d3 / 1e9:.1f} to {most * high - d3 / 1e9:.1f}"
    rows = [
        ["all but D3", f"{156 * (1 - share):.1f} ({least * (1 - high):.1f} to {most * (1 - low):.1f})", giga(rest), giga(rest_pytorch)],
        ["D3", f"{156 * share:.1f} ({least * low:.1f} to {most * high:.1f})", giga(d3), giga(d3)],
        ["too much in D3", f"{156 * share - d3 / 1e9:.1f} ({excess})", "", ""],
        ["D-block-v2 saves in one branch", "", *[giga(STANDARD.macs("retinanet") - STANDARD.macs("lw-v1"))] * 2],
    ]
    return table(["", "from 156 and 48 %, G", "counted, Caffe stride", "PyTorch stride"], rows)


def readings_table() -> list[str]:
    printed = [(str(scale), "retinanet", scale, gflops) for scale, gflops in SCALING_GFLOPS.items()]
    printed += [(titled(name), name, 800, gflops) for name, gflops in LIGHT_GFLOPS.items()]
    printed += [(titled(name), name, 800, row[2]) for name, row in BBOX.items()]
    rows = [["the paper", *(str(gflops) for *_, gflops in printed), ""]]
    for reading in READINGS:
        counts = [(reading.macs(name, scale), gflops) for _, name, scale, gflops in printed]
        hits = sum(bool(fit(*pair)) for pair in counts)
        rows.append([reading.name, *(giga(*pair) for pair in counts), str(hits)])
    return table(["reading", *(label for label, *_ in printed), "found"], rows)


def blocks_table() -> list[str]:
    rows = []
    for block in ("v1", "v2", "v3"):
        for branches, label in (("cls", "class"), ("bbox", "box"), ("cls bbox", "both")):
            cells = []
            for stride in (CAFFE, PYTORCH):
                for predict in ("3x3", LIGHT_PREDICTION[block]):
                    macs = total(count_blocks(make(block_plan(block, branches, predict), stride_in=stride), (800, 800)))
                    found = next((number for number in LIGHT_GFLOPS.values() if fit(macs, number)), None)
                    cells.append(giga(macs, found) + (f" ({found})" if found else ""))
            rows.append([block, label, *cells])
    header = ["block", "branch", "Caffe, 3x3 prediction", "Caffe, light prediction", "PyTorch, 3x3", "PyTorch, light"]
    return table(header, rows)


def garbled_table() -> list[str]:
    base, rows = STANDARD.macs("retinanet"), []
    for name, (_, _, gflops, reduction) in BBOX.items():
        macs = STANDARD.macs(name)
        rows.append(
            [
                f"D-block-{name[-2:]}",
                str(gflops),
                f"-{100 * (1 - gflops / 156):.1f} %",
                f"-{reduction} %",
                f"{156 * (1 - reduction / 100):.1f}",
                giga(macs),
                f"-{100 * (1 - macs / base):.1f} %",
            ]
        )
    header = ["box branch", "printed, G", "of 156", "printed", "of 156, G", "counted, G", f"of {giga(base)}"]
    return table(header, rows)


def weights_table() -> list[str]:
    base = params(HeadPlan())
    plans = {f"`{name}`": plan_of(name) for name in ("lw-v1", "lw-v2", "lw-v3", "lw-v3-released", *BBOX)}
    plans["released code to the letter"] = released_plan()
    rows = [["`retinanet`", f"{base:,}", "", ""]]
    for name, plan in plans.items():
        more = params(plan) - base
        share = f"+{100 * more / base:.1f} %"
        rows.append([name, f"{base + more:,}", f"+{more:,}", f"**{share}**" if more < 0.01 * base else share])
    return table(["head", "parameters", "more", "share"], rows)


def released_plan() -> HeadPlan:
    """The released code to the letter: the first unit of both towers is un-shared at every level."""
    first = TowerPlan(units=("3x3", "shared", "shared", "shared"), predict="shared")
    levels: dict[Level, TowerPlan] = {"P4": first, "P5": first, "P6": first, "P7": first}
    return HeadPlan(cls={**levels, "P3": block_tower("v3")}, bbox={**levels, "P3": block_tower("v3", predict="shared")})


def released_table() -> list[str]:
    released, paper = RELEASED.macs("lw-v3"), STANDARD.macs("lw-v3")
    more = params(released_plan()) - params(plan_of("lw-v3-released"))
    rows = [
        [
            "D-block-v3 in both branches of D3",
            "class prediction of P3 own and 1x1; box prediction 3x3, shared by P3 to P7",
            f"+{giga(released - paper)} GMACs: {giga(released)}",
        ],
        ["D4 to D7 share all weights", "the first unit of both towers is un-shared at every level", f"no MACs, +{more:,} parameters"],
        ["schedule: twice, then times the reduction", "270,000 iterations on 4 GPUs, rate 0.005", "1.5 times the original, not 1.8"],
        ["tested on test-dev", "tested on minival, the pictures of val2017", "not comparable to a tenth of a point"],
        ["initialisation not told", "normal(0, 0.01) for every convolution of the head, also the 1x1", "section 9"],
        ["LW-v1 to LW-v3, D-block-v1 and -v2", "LW-v3 only; no weights, no logs", "inside of v1 and order in v2 unknown"],
    ]
    return table(["the paper", "the released code", "cost"], rows)
