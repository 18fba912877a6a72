"""The order of the floors: a file imports what stands below it in the table, never what is above.

`python tests/test_floors.py` prints CONTRIBUTING's table, which is made of the same list.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# From the highest to the lowest; rooms of one floor know nothing of each other.
FLOORS = (
    (("cli",), "arguments to calls; imports nothing heavy before they are checked"),
    (("serve",), "the live page: messages, turns, videos in the making, the web application"),
    (("lab",), "experiments: arms, hosts and stressors, paired differences, reports"),
    (("shapes",), "the embedded model: its world, checker, training recipe and weights"),
    (("planning", "evaluate", "verify"), "plans for other machines; measures of any video; checks"),
    (("plots", "records"), "pictures of runs; what is needed to repeat one"),
    (("pipeline",), "`load`, text to video, streams, continuation: what a person calls"),
    (("overview", "saved"), "what is kept of a video whose frames went to files; states in files"),
    (("video",), "`Video`, its `Chunk`s and `VideoState`: frames, and the rollout behind them"),
    (
        ("prompts", "scenes", "frames", "media"),
        "prompts to embeddings; scenes from a line; frames and latents; files of frames",
    ),
    (("checkpoint",), "our format on disk"),
    (("_rollout",), "`lax.scan` over chunks: `rollout`, `stream`, `lower`"),
    (("strategies",), "one chunk; the only place where model, cache and TokenTrim meet"),
    (("trim",), "TokenTrim: drift, when to intervene, which entries to drop; knows no model"),
    (("cache",), "the fixed-size K/V buffer with its validity mask: append, evict, prune"),
    (("models",), "Flax NNX modules, pure forwards; know no cache policy and no mesh"),
    (("nn",), "layers, rotary positions, attention and its kernels"),
    (
        ("sharding", "contracts", "files", "settings", "errors"),
        "where arrays live; checks of records and settings; atomic files; what can go wrong",
    ),
)
FLOOR = {room: len(FLOORS) - i for i, (rooms, _) in enumerate(FLOORS) for room in rooms}


def rooms_imported(path: Path) -> set[str]:
    """The rooms of tt_jax that a file imports anything from, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("tt_jax.")}
    # The package itself gives its public names, those of the pipeline highest.
    return (rooms | ({"pipeline"} if "tt_jax" in names else set())) - {"__version__"}


def test_imports_point_downwards():
    wrong = []
    for path in sorted((ROOT / "tt_jax").rglob("*.py")):
        room = path.relative_to(ROOT / "tt_jax").parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):  # they give names and start the command line
            continue
        others = rooms_imported(path) - {room}
        wrong += [f"{path} imports {o}" for o in others if FLOOR.get(o, 99) >= FLOOR[room]]
    assert not wrong, "\n".join(wrong)


def table() -> str:
    """CONTRIBUTING's table of the rooms."""
    lines = ["| | |", "|---|---|"]
    for rooms, purpose in FLOORS:
        names = (r if (ROOT / "tt_jax" / r).is_dir() else f"{r}.py" for r in rooms)
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {purpose} |")
    return "\n".join(lines)


def test_contributing_shows_the_floors():
    assert table() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
