"""The experiment file: which arms are compared, under which hosts and stressors, on which prompts.

A TOML file with `batch`, `against` and, if not the embedded one, `model` and, if bounded, `hours`;
tables `[arms.NAME]` of TokenTrim's settings and a cache policy (`cache = "mem-rope:sink=2"`),
`[stress.NAME]`, and `[[studies]]`, which may have a `batch` of their own. A list in place of a
setting of an arm stands for one arm for each of its values. The file alone decides which videos
are made together, so that a run that was interrupted gives the same numbers.
"""

import dataclasses
import functools
import itertools
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

from tt_jax import cache
from tt_jax.evaluate.measures import SHORTEST
from tt_jax.frames import frame_count
from tt_jax.models.configs import FPS
from tt_jax.prompts import check_prompts
from tt_jax.shapes.language import evaluation_prompts
from tt_jax.strategies.presets import NAMES
from tt_jax.trim.tokentrim import TokenTrim

WORLD_PROMPTS = 256  # the embedded world's fixed ones; also the most that a study can have
CLEAN = "clean"  # the stress that every file has: none

Reader = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Plant:
    """A corruption of the memory at a known time and place.

    Attributes:
        second: the newest chunk in memory is corrupted after the first chunk that ends at or after
            it.
        rows: of the tokens, from 0; each of them with each of the columns is a planted token.
        columns: of the tokens, from 0.
        strength: deviation of the noise that replaces the cached values, relative to their own.
    """

    second: float
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    strength: float


@dataclasses.dataclass(frozen=True)
class Stress:
    """What a system has to bear, beside the drift of its own.

    Attributes:
        name: in the file.
        model: name or folder; another one than the experiment's for another training age.
        dtype: of all weights; the machine's default if None.
        window: frames that Self Forcing's attention spans; what the model was trained with if None.
        plant: a corruption of the memory.
    """

    name: str
    model: str
    dtype: str | None = None
    window: int | None = None
    plant: Plant | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """A TokenTrim with a name.

    Attributes:
        name: in the file.
        trim: its settings.
        cache: Self Forcing's cache policy, as `cache.parse` takes it; the model's own window if
            None.
    """

    name: str
    trim: TokenTrim
    cache: str | None = None


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        text: what it says.
        regime: the embedded world's, "" for a text of which no truth is known.
    """

    text: str
    regime: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """Videos that are made together: the smallest piece of a run.

    Attributes:
        stress: what the system has to bear.
        host: the strategy's name.
        arm: the settings that are compared.
        seconds: of each video.
        seed: of all noise.
        first: index in its study of the first of the prompts, which decides on their noise.
        prompts: one for each video.
    """

    stress: Stress
    host: str
    arm: Arm
    seconds: float
    seed: int
    first: int
    prompts: tuple[Prompt, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid: every arm under every host and stress, with every seed, on every prompt.

    Attributes:
        name: what a report calls it.
        prompts: what the videos show.
        seconds: length of each video.
        hosts: names of strategies.
        arms: what is compared.
        stress: what makes it harder.
        seeds: of the noise.
        batch: how many videos of one arm are made together.
    """

    name: str
    prompts: tuple[Prompt, ...]
    seconds: float
    hosts: tuple[str, ...]
    arms: tuple[Arm, ...]
    stress: tuple[Stress, ...]
    seeds: tuple[int, ...]
    batch: int

    def cells(self) -> list[Cell]:
        """All cells, those that are compared with one another next to one another."""
        batch = self.batch
        starts = range(0, len(self.prompts), batch)
        grid = itertools.product(starts, self.seeds, self.stress, self.hosts, self.arms)
        return [
            Cell(stress, host, arm, self.seconds, seed, first, self.prompts[first : first + batch])
            for first, seed, stress, host, arm in grid
        ]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole file.

    Attributes:
        hours: no cell is begun after them.
        against: the arms that all others are compared with.
        studies: in the file's order.
    """

    hours: float
    against: tuple[str, ...]
    studies: tuple[Study, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell once, in the file's order, also where studies share some."""
        return tuple(dict.fromkeys(c for study in self.studies for c in study.cells()))


def read(path: Path) -> Experiment:
    """Reads an experiment file.

    Args:
        path: of the file.

    Returns:
        The experiment.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: in one sentence that names what is wrong: no TOML, a key that is unknown,
            missing or of a wrong kind, an arm that can't be, or arms that are compared under
            different rules of noise.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"there is no file {path}.") from None
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {error}.") from None
    try:
        return _experiment(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _experiment(table: dict[str, Any]) -> Experiment:
    values = _fill(table, "the file", EXPERIMENT, ("batch", "against", "arms", "studies"))
    model = values.get("model", "shapes")
    arms = {name: _arms(name, given) for name, given in values["arms"].items()}
    stress = {CLEAN: Stress(CLEAN, model)}
    for name, given in values.get("stress", {}).items():
        if name == CLEAN:
            raise ValueError(f"stress {CLEAN!r} is the one without any: choose another name.")
        stress[name] = _stress(name, given, model)
    studies = tuple(_study(given, arms, stress, values["batch"]) for given in values["studies"])
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise ValueError("two studies have the same name.")
    known = {arm.name for group in arms.values() for arm in group}
    for name in values["against"]:
        if name not in known:
            raise ValueError(f"against: there is no arm {name!r}.")
    return Experiment(values.get("hours", math.inf), tuple(values["against"]), studies)


def _arms(name: str, table: Any) -> tuple[Arm, ...]:
    """One arm, or one for each combination of the values listed, named after them."""
    where = f"arm {name!r}"
    _fill(table, where, dict.fromkeys(ARM, _any), ())
    lists = {key: value if isinstance(value, list) else [value] for key, value in table.items()}
    varied = [key for key, value in table.items() if isinstance(value, list)]
    arms = []
    for choice in itertools.product(*lists.values()):
        settings = _fill(dict(zip(lists, choice, strict=True)), where, ARM, ())
        values = ", ".join(str(settings[key]) for key in varied)
        policy = settings.pop("cache", None)
        try:
            trim = TokenTrim(**settings)
            if policy is not None:
                cache.parse(policy)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        arms.append(Arm(f"{name} {values}".strip(), trim, policy))
    return tuple(arms)


def _stress(name: str, table: Any, model: str) -> Stress:
    values = _fill(table, f"stress {name!r}", STRESS, ())
    if plant := values.pop("plant", None):
        wanted = tuple(PLANT)
        plant = Plant(**_fill(plant, f"the plant of stress {name!r}", PLANT, wanted))
    return Stress(name, **{"model": model, **values}, plant=plant)


def _study(
    table: Any, arms: Mapping[str, tuple[Arm, ...]], stress: Mapping[str, Stress], batch: int
) -> Study:
    required = ("name", "prompts", "seconds", "hosts", "arms")
    label = table.get("name") if isinstance(table, dict) else None
    where = f"study {label!r}"
    values = _fill(table, where, STUDY, required)
    for key, known in (("hosts", NAMES), ("arms", arms), ("stress", stress)):
        for name in values.get(key, ()):
            if name not in known:
                raise ValueError(
                    f"{where}: there is no {key.removesuffix('s') if key != 'stress' else key} "
                    f"{name!r}, only {', '.join(known)}."
                )
    chosen = tuple(arm for name in values["arms"] for arm in arms[name])
    rules = {arm.trim.resample_noise for arm in chosen if arm.trim.retries}
    if len(rules) > 1:
        raise ValueError(
            f"{where} compares arms that draw fresh noise with arms that don't: "
            "give all of them the same resample_noise."
        )
    prompts = _prompts(values["prompts"], where)
    batch = values.get("batch", batch)
    if len(prompts) % batch:
        raise ValueError(f"{where}: {len(prompts)} prompts don't fill batches of {batch}.")
    if frame_count(values["seconds"]) < SHORTEST * FPS:
        raise ValueError(f"{where}: videos of less than {SHORTEST} seconds can't be measured.")
    return Study(
        values["name"],
        prompts,
        float(values["seconds"]),
        tuple(values["hosts"]),
        chosen,
        tuple(stress[name] for name in values.get("stress", (CLEAN,))),
        tuple(values.get("seeds", (0,))),
        batch,
    )


def _prompts(value: int | Sequence[str], where: str) -> tuple[Prompt, ...]:
    """The first of the embedded world's fixed prompts, or those given."""
    count = value if isinstance(value, int) else len(value)
    if not 1 <= count <= WORLD_PROMPTS:
        raise ValueError(f"{where}: 1 to {WORLD_PROMPTS} prompts are possible, not {count}.")
    if isinstance(value, int):
        return _world()[:count]
    check_prompts(value)
    return tuple(Prompt(text, "") for text in value)


@functools.cache
def _world() -> tuple[Prompt, ...]:
    pairs = evaluation_prompts(WORLD_PROMPTS)
    return tuple(Prompt(text, scene.regime) for text, scene in pairs)


# --- reading tables -----------------------------------------------------------------------------


def _fill(
    table: Any, where: str, readers: Mapping[str, Reader], required: Sequence[str]
) -> dict[str, Any]:
    """The table's values, each read by its key's reader."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} must be a table.")
    for key in table:
        if key not in readers:
            raise ValueError(f"{where} has no setting {key!r}, only {', '.join(readers)}.")
    for key in required:
        if key not in table:
            raise ValueError(f"{where} lacks the setting {key!r}.")
    values = {}
    for key, value in table.items():
        try:
            values[key] = readers[key](value)
        except TypeError as error:
            raise ValueError(f"{key!r} of {where} must be {error}, not {value!r}.") from None
    return values


def _any(value: Any) -> Any:
    return value


def _of(
    kind: type | UnionType, words: str, test: Callable[[Any], bool] = lambda value: True
) -> Reader:
    """A reader of one kind of value; raises TypeError with what it must be."""

    def read(value: Any) -> Any:
        # In Python a truth value is a number too.
        if isinstance(value, bool) is not (kind is bool) or not isinstance(value, kind):
            raise TypeError(words)
        if not test(value):
            raise TypeError(words)
        return value

    return read


def _list(of: Reader, words: str) -> Reader:
    """A reader of a list with at least one value and none twice."""

    def read(value: Any) -> tuple:
        if not isinstance(value, list) or not value:
            raise TypeError(words)
        try:
            values = tuple(of(one) for one in value)
        except TypeError:
            raise TypeError(words) from None
        if len(set(values)) < len(values):
            raise TypeError(words)
        return values

    return read


def _count_or_texts(value: Any) -> int | tuple[str, ...]:
    words = "a count, or a list of different texts"
    if isinstance(value, list):
        return _list(_of(str, words), words)(value)
    return _of(int, words)(value)


_text = _of(str, "a text", bool)
_flag = _of(bool, "true or false")
_count = _of(int, "a whole number from 0", lambda value: value >= 0)
_positive = _of(int, "a whole number from 1", lambda value: value >= 1)
_number = _of(int | float, "a finite number", math.isfinite)
_length = _of(int | float, "a number above 0", lambda value: 0 < value < math.inf)
_table = _of(dict, "a table")
_texts = _list(_text, "a list of different texts")
_places = _list(_count, "a list of different whole numbers from 0")
_dtype = _of(str, '"float32" or "bfloat16"', lambda value: value in ("float32", "bfloat16"))
_tables = _of(list, "tables, [[studies]]", bool)
_seed = _of(int, "a whole number from 0 to 2**24 - 1", lambda value: 0 <= value < 2**24)

EXPERIMENT: dict[str, Reader] = {
    "model": _text,
    "batch": _positive,
    "hours": _length,
    "against": _texts,
    "arms": _table,
    "stress": _table,
    "studies": _tables,
}
# TokenTrim's own settings, each read like its default, and the cache policy.
ARM: dict[str, Reader] = {
    field.name: {float: _number, int: _count, bool: _flag, str: _text}[type(field.default)]
    for field in dataclasses.fields(TokenTrim)
} | {"cache": _text}
STRESS: dict[str, Reader] = {
    "model": _text,
    "dtype": _dtype,
    "window": _positive,
    "plant": _table,
}
PLANT: dict[str, Reader] = {
    "second": _length,
    "rows": _places,
    "columns": _places,
    "strength": _length,
}
STUDY: dict[str, Reader] = {
    "name": _text,
    "prompts": _count_or_texts,
    "batch": _positive,
    "seconds": _length,
    "hosts": _texts,
    "arms": _texts,
    "stress": _texts,
    "seeds": _list(_seed, "a list of different whole numbers from 0 to 2**24 - 1"),
}
